"""Keep a family's special tokens in texts as text: `<image>`, `<|im_start|>`, `</s>` as words.

A tokenizer makes one token of a special token wherever it stands, and a processor takes each
`<image>` for the place of a picture. Chat templates write both into the same string as a row's
texts. So a text with a special token is rendered as a stand-in, and becomes text again when it is
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
_LIKE_A_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Za-z][\w/]*\]")

#: Attributes of a processor with special tokens that its tokenizer may not list.
_PLACES = ("image_token", "video_token", "audio_token")

#: Stand-ins are private-use characters, and are never tokenized.
_STAND_INS = range(0x100000, 0x10FFFE)


def may_hold_special_tokens(text: str) -> bool:
    """Return whether a text contains what could be a special token of some family."""
    return ("<" in text or "[" in text) and _LIKE_A_MARK.search(text) is not None


class SpecialTokens:
    """The special tokens of one processor, and texts in which they are text."""

    def __init__(self, processor: Any) -> None:
        """Read them from a processor with a tokenizer."""
        self._processor, self._tokenizer = processor, processor.tokenizer
        added = self._tokenizer.added_tokens_decoder.values()
        found = {
            *(token.content for token in added if token.special),
            *self._tokenizer.all_special_tokens,
            *(str(getattr(processor, name)) for name in _PLACES if getattr(processor, name, None)),
        }
        longest_first = sorted(filter(str.strip, found), key=lambda mark: (-len(mark), mark))
        # A tokenizer may normalize case before it looks for them.
        self._pattern = re.compile(
            f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})", re.IGNORECASE
        )

    def within(self, text: str) -> list[str]:
        """Return the special tokens in a text."""
        return [found.group() for found in self._pattern.finditer(text)]

    def problem(self, text: str) -> str | None:
        """Return a special token in a text that the tokenizer cannot write as text, or None."""
        held = self.within(text)
        if not held:
            return None
        if self._reads_twice():
            return held[0]
        try:
            ids = set(self._plain(text))
        except (TypeError, ValueError, NotImplementedError):  # mistral-common has no such option
            return held[0]
        for mark in held:
            token = self._tokenizer.convert_tokens_to_ids(mark)
            if token in ids and token not in (None, self._tokenizer.unk_token_id):
                return mark
        return None

    def ids(self, text: str) -> list[int]:
        """Return a text's ids, with special tokens as text."""
        if self.within(text):
            return self._plain(text)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def hidden(self, *texts: str) -> tuple[Any, list[str]]:
        """Return a processor, and texts for it in which special tokens are text.

        If no text contains one, they are the original processor and texts.

        Raises:
            TrialError: the tokenizer cannot write one as text.
        """
        if not any(map(self._pattern.search, texts)):
            return self._processor, list(texts)
        signs = (chr(sign) for sign in _STAND_INS if not any(chr(sign) in text for text in texts))
        stand_ins: dict[str, str] = {}
        shown = []
        for text in texts:
            if self._pattern.search(text):
                mark = self.problem(text)
                if mark is not None:
                    raise TrialError(f"{printed(text)} {special_token_problem(mark)}")
                sign, said = next(signs), text.strip()
                stand_ins[sign] = said
                text = text.replace(said, sign, 1)  # a template may strip surrounding space
            shown.append(text)
        processor = copy.copy(self._processor)
        processor.tokenizer = _Hiding(self._tokenizer, self._pattern, stand_ins)
        return processor, shown

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _reads_twice(self) -> bool:
        """Return whether a processor has a second tokenizer, which would see the stand-ins."""
        named: list[str] = getattr(self._processor, "get_attributes", list)()
        return any(name != "tokenizer" and name.endswith("tokenizer") for name in named)


@dataclass(frozen=True)
class _Token:
    """A token, and its offsets in the text."""

    id: int
    start: int = 0
    end: int = 0


class _Hiding:
    """A tokenizer that replaces stand-ins by their texts."""

    def __init__(self, tokenizer: Any, marks: re.Pattern[str], texts: Mapping[str, str]) -> None:
        self._tokenizer, self._marks, self._texts = tokenizer, marks, texts

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
            self._tokens(each, add_special_tokens)
            for each in ([text] if isinstance(text, str) else text)
        ]

        class Encoded(BatchEncoding):  # type: ignore[misc]
            def char_to_token(self, row: int, character: int) -> int | None:
                # Idefics3 counts its image tokens this way.
                places = enumerate(rows[row])
                return next((n for n, one in places if one.start <= character < one.end), None)

        made: dict[str, Any] = {
            "input_ids": [[token.id for token in row] for row in rows],
            "attention_mask": [[1] * len(row) for row in rows],
        }
        if isinstance(text, str) and return_tensors is None:
            made = {name: value[0] for name, value in made.items()}
        return Encoded(made, tensor_type=return_tensors)

    def _tokens(self, text: str, add_special_tokens: bool) -> list[_Token]:
        tokens: list[_Token] = []
        closing: list[_Token] = []
        for place, run, plain in self._runs(text):
            if tokens:
                tokens += self._continued(run, plain, place)
                continue
            tokens = self._encoded(run, plain, place)
            if add_special_tokens:
                whole = self._encoded(run, plain, place, add_special_tokens=True)
                before = _place([one.id for one in whole], [one.id for one in tokens])
                tokens, closing = (
                    whole[: before + len(tokens)],
                    whole[before + len(tokens) :],
                )
        return tokens + closing

    def _runs(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Yield the text in pieces: offset, text, and whether special tokens in it are text.

        A replaced text reaches from one special token around it to the next, as it would in a
        tokenizer that could tell them apart.
        """
        held, place = "", 0
        for piece in self._marks.split(text):
            said = piece
            for sign, words in self._texts.items():
                said = said.replace(sign, words)
            if said == piece:
                held += piece
                continue
            if held:
                yield place, held, False
            yield place + len(held), said, True
            place, held = place + len(held) + len(piece), ""
        if held:
            yield place, held, False

    def _continued(self, text: str, plain: bool, place: int) -> list[_Token]:
        """Return tokens of a text in the middle: without the space that a beginning may get."""
        before = self._encoded("\n", plain, place - 1)
        tokens = self._encoded("\n" + text, plain, place - 1)
        cut = len(before)
        if [one.id for one in tokens[:cut]] == [one.id for one in before]:
            return tokens[cut:]
        return self._encoded(text, plain, place)

    def _encoded(
        self, text: str, plain: bool, place: int, *, add_special_tokens: bool = False
    ) -> list[_Token]:
        options: dict[str, bool] = {"add_special_tokens": add_special_tokens}
        if plain:
            options["split_special_tokens"] = True
        if plain or not self._tokenizer.is_fast:  # no image in it, or no offsets known
            return [_Token(id) for id in self._tokenizer(text, **options)["input_ids"]]
        made = self._tokenizer(text, return_offsets_mapping=True, **options)
        return [
            _Token(id, place + start, place + end)
            for id, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        ]


def special_token_problem(mark: str) -> str:
    """Return what is wrong with a text that contains a special token."""
    return f"holds {mark}, a mark of the model that its tokenizer cannot write as text: take it out"


def printed(text: str) -> str:
    """Return a text's beginning for a message."""
    return f"the text {text[:40]!r}{'…' if len(text) > 40 else ''}"


def _place(whole: list[int], part: list[int]) -> int:
    """Return the index at which ids begin in the same ids with special tokens around them."""
    places = range(len(whole) - len(part) + 1)
    return next((place for place in places if whole[place : place + len(part)] == part), 0)
