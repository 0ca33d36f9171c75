"""Keep a family's special tokens in texts as text: `<image>`, `<|im_start|>`, `</s>` as words.

A tokenizer turns a special token into one token anywhere in a text, and a processor treats each
`<image>` as the position of a picture. Chat templates write both into the same string as a row's
texts. So a text with a special token is rendered as a stand-in, which becomes text again when it is
tokenized: between the template's own special tokens, with `split_special_tokens`. Texts without
them are unchanged.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chip_core.utils.errors import TrialError

#: The usual forms of special tokens: `<|im_start|>`, `</s>`, `[INST]`.
_SPECIAL_TOKEN_PATTERN = re.compile(r"<[^<>\s]+>|\[/?[A-Za-z][\w/]*\]")

#: Attributes of a processor with special tokens that its tokenizer may not list.
_TOKEN_ATTRIBUTES = ("image_token", "video_token", "audio_token")

#: Stand-ins are private-use characters, and are never tokenized.
_STAND_INS = range(0x100000, 0x10FFFE)


def may_hold_special_tokens(text: str) -> bool:
    """Return whether a text contains what could be a special token of some family."""
    return ("<" in text or "[" in text) and _SPECIAL_TOKEN_PATTERN.search(text) is not None


class SpecialTokens:
    """The special tokens of one processor, and texts in which they are text."""

    def __init__(self, processor: Any) -> None:
        """Read them from a processor with a tokenizer."""
        self._processor, self._tokenizer = processor, processor.tokenizer
        added = self._tokenizer.added_tokens_decoder.values()
        tokens = {
            *(token.content for token in added if token.special),
            *self._tokenizer.all_special_tokens,
            *(
                str(getattr(processor, name))
                for name in _TOKEN_ATTRIBUTES
                if getattr(processor, name, None)
            ),
        }
        longest_first = sorted(filter(str.strip, tokens), key=lambda text: (-len(text), text))
        # A tokenizer may normalize case before it looks for them.
        self._pattern = re.compile(
            f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})", re.IGNORECASE
        )

    def find(self, text: str) -> list[str]:
        """Return the special tokens in a text."""
        return [match.group() for match in self._pattern.finditer(text)]

    def find_unencodable(self, text: str) -> str | None:
        """Return a special token in a text that the tokenizer cannot encode as text, or None."""
        tokens = self.find(text)
        if not tokens:
            return None
        if self._has_second_tokenizer():
            return tokens[0]
        try:
            ids = set(self._encode_as_text(text))
        except (TypeError, ValueError, NotImplementedError):  # mistral-common has no such option
            return tokens[0]
        for token in tokens:
            token_id = self._tokenizer.convert_tokens_to_ids(token)
            if token_id in ids and token_id not in (None, self._tokenizer.unk_token_id):
                return token
        return None

    def tokenize(self, text: str) -> list[int]:
        """Return a text's ids, with special tokens as text."""
        if self.find(text):
            return self._encode_as_text(text)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def hide(self, *texts: str) -> tuple[Any, list[str]]:
        """Return a processor, and texts for it in which special tokens are text.

        If no text contains one, they are the original processor and texts.

        Raises:
            TrialError: the tokenizer cannot encode one as text.
        """
        if not any(map(self._pattern.search, texts)):
            return self._processor, list(texts)
        stand_in_chars = (
            chr(char) for char in _STAND_INS if not any(chr(char) in text for text in texts)
        )
        stand_ins: dict[str, str] = {}
        hidden_texts = []
        for text in texts:
            if self._pattern.search(text):
                token = self.find_unencodable(text)
                if token is not None:
                    raise TrialError(f"{shorten_text(text)} {describe_special_token(token)}")
                char, original = next(stand_in_chars), text.strip()
                stand_ins[char] = original
                text = text.replace(original, char, 1)  # a template may strip surrounding space
            hidden_texts.append(text)
        processor = copy.copy(self._processor)
        processor.tokenizer = _StandInTokenizer(self._tokenizer, self._pattern, stand_ins)
        return processor, hidden_texts

    def _encode_as_text(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _has_second_tokenizer(self) -> bool:
        """Return whether a processor has a second tokenizer, which would see the stand-ins."""
        attributes: list[str] = getattr(self._processor, "get_attributes", list)()
        return any(name != "tokenizer" and name.endswith("tokenizer") for name in attributes)


@dataclass(frozen=True)
class _Token:
    """A token, and its offsets in the text."""

    id: int
    start: int = 0
    end: int = 0


class _StandInTokenizer:
    """A tokenizer that replaces stand-ins by their texts."""

    def __init__(self, tokenizer: Any, pattern: re.Pattern[str], texts: Mapping[str, str]) -> None:
        self._tokenizer, self._pattern, self._texts = tokenizer, pattern, texts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """Return `input_ids` and `attention_mask`, without padding."""
        from transformers import BatchEncoding

        rows = [
            self._tokenize(row_text, add_special_tokens)
            for row_text in ([text] if isinstance(text, str) else text)
        ]

        class Encoded(BatchEncoding):  # type: ignore[misc]
            def char_to_token(self, row: int, character: int) -> int | None:
                # Idefics3 counts its image tokens this way.
                tokens = enumerate(rows[row])
                return next(
                    (index for index, entry in tokens if entry.start <= character < entry.end), None
                )

        encoded: dict[str, Any] = {
            "input_ids": [[token.id for token in row] for row in rows],
            "attention_mask": [[1] * len(row) for row in rows],
        }
        if isinstance(text, str) and return_tensors is None:
            encoded = {name: value[0] for name, value in encoded.items()}
        return Encoded(encoded, tensor_type=return_tensors)

    def _tokenize(self, text: str, add_special_tokens: bool) -> list[_Token]:
        tokens: list[_Token] = []
        closing: list[_Token] = []
        for offset, piece, as_text in self._split_pieces(text):
            if tokens:
                tokens += self._tokenize_continuation(piece, as_text, offset)
                continue
            tokens = self._encode(piece, as_text, offset)
            if add_special_tokens:
                with_special = self._encode(piece, as_text, offset, add_special_tokens=True)
                prefix_length = _find_sublist(
                    [token.id for token in with_special], [token.id for token in tokens]
                )
                end = prefix_length + len(tokens)
                tokens, closing = with_special[:end], with_special[end:]
        return tokens + closing

    def _split_pieces(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Yield the text in pieces: offset, text, and whether special tokens in it are text.

        A replaced text reaches from one special token around it to the next, as it would in a
        tokenizer that could tell them apart.
        """
        pending, offset = "", 0
        for piece in self._pattern.split(text):
            restored = piece
            for stand_in, original in self._texts.items():
                restored = restored.replace(stand_in, original)
            if restored == piece:
                pending += piece
                continue
            if pending:
                yield offset, pending, False
            yield offset + len(pending), restored, True
            offset, pending = offset + len(pending) + len(piece), ""
        if pending:
            yield offset, pending, False

    def _tokenize_continuation(self, text: str, as_text: bool, offset: int) -> list[_Token]:
        """Return the tokens of a text in the middle of another, without a space before it."""
        newline = self._encode("\n", as_text, offset - 1)
        tokens = self._encode("\n" + text, as_text, offset - 1)
        length = len(newline)
        if [token.id for token in tokens[:length]] == [token.id for token in newline]:
            return tokens[length:]
        return self._encode(text, as_text, offset)

    def _encode(
        self, text: str, as_text: bool, offset: int, *, add_special_tokens: bool = False
    ) -> list[_Token]:
        options: dict[str, bool] = {"add_special_tokens": add_special_tokens}
        if as_text:
            options["split_special_tokens"] = True
        if as_text or not self._tokenizer.is_fast:  # no image in it, or no offsets known
            return [_Token(id) for id in self._tokenizer(text, **options)["input_ids"]]
        encoded = self._tokenizer(text, return_offsets_mapping=True, **options)
        return [
            _Token(id, offset + start, offset + end)
            for id, (start, end) in zip(
                encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]


def describe_special_token(token: str) -> str:
    """Return what is wrong with a text that contains a special token."""
    return (
        f"holds {token}, a special token that the model's tokenizer cannot encode as text: remove "
        "it"
    )


def shorten_text(text: str) -> str:
    """Return a text's beginning for a message."""
    return f"the text {text[:40]!r}{'…' if len(text) > 40 else ''}"


def _find_sublist(sequence: list[int], part: list[int]) -> int:
    """Return where ids begin in the same ids with special tokens around them."""
    starts = range(len(sequence) - len(part) + 1)
    return next((start for start in starts if sequence[start : start + len(part)] == part), 0)
