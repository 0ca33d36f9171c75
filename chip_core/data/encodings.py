"""Encode texts as a model's family writes them, and keep encoded prompts for the next trial.

A processor may define both a response's ids and its scored tokens itself:
`labels(conversation, rule)` returns ids and labels of a whole conversation, as its chat template
`training` writes it. For every other family, a response is its text and an end of sequence, and all
of it is scored.

The arms of a study train on the same pairs and answer the same questions, so each prompt is
processed once.

A family's special tokens in texts are kept as text: `<image>`, `<|im_start|>`, `</s>` as words. A
tokenizer makes one token of a special token wherever it stands, and a processor takes each
`<image>` for the place of a picture. Chat templates write both into the same string as a row's
texts. So a text with a special token is rendered as a stand-in, and becomes text again when it is
tokenized: between the template's own special tokens, with `split_special_tokens`. Texts without
them are unchanged.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from chip_core.utils.errors import TrialError
from chip_core.utils.machine import total_memory

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: The chat template for training, if the processor has it.
TRAINING_TEMPLATE = "training"
#: The share of the machine's memory that a process's kept prompts may take.
MEMORY_SHARE = 1 / 128
#: Approximate bytes of an entry in addition to its tensors: token ids, texts and their objects.
ENTRY_OVERHEAD = 4096


@dataclass(frozen=True, kw_only=True)
class EncodedResponse:
    """A response after its prompt."""

    ids: list[int]  # after the prompt
    closing: int  # how many of them, at the end, are not part of its text
    #: Positions in the prompt whose tokens are scored like the response's.
    leading: tuple[int, ...] = ()


def check_label_rule(processor: Any, rule: str) -> None:
    """Check that a processor supports `training.label_rule`.

    Raises:
        TrialError: it has only one rule.
    """
    if rule != "clean" and not hasattr(processor, "labels"):
        raise TrialError(
            f"training.label_rule: {rule}: a {type(processor).__name__} scores only the response: "
            "write clean"
        )


def training_template(processor: Any) -> dict[str, str]:
    """Return the chat template for training, as an option of `apply_chat_template`."""
    templates = processor.chat_template
    return (
        {"chat_template": TRAINING_TEMPLATE}
        if isinstance(templates, dict) and TRAINING_TEMPLATE in templates
        else {}
    )


def encode_response(
    processor: Any, question: Mapping[str, Any], prompt: list[int], text: str, rule: str
) -> EncodedResponse:
    """Encode a response after a prompt.

    Args:
        processor: the model's.
        question: the message that the prompt was made from.
        prompt: its ids.
        text: the response.
        rule: `training.label_rule`.

    Raises:
        TrialError: response and prompt are tokenized differently together than separately.
    """
    if not hasattr(processor, "labels"):
        tokenizer = processor.tokenizer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return EncodedResponse(ids=[*ids, tokenizer.eos_token_id], closing=1)
    reply = {"role": "assistant", "content": [{"type": "text", "text": text}]}
    conversation = [question, reply]
    conversation_ids, labels = processor.labels(conversation, rule)
    if conversation_ids[: len(prompt)] != prompt:
        raise TrialError(
            f"the response {text[:40]!r} changes how the tokens of its prompt are spelled: leave "
            "the pair out"
        )
    positions = _find_scored_positions(labels)
    text_positions = (
        positions
        if rule == "clean"
        else _find_scored_positions(processor.labels(conversation, "clean")[1])
    )
    end = positions[-1] + 1 if positions else len(prompt)
    return EncodedResponse(
        ids=conversation_ids[len(prompt) : end],
        closing=end - (text_positions[-1] + 1) if text_positions else 0,
        leading=tuple(position for position in positions if position < len(prompt)),
    )


def _find_scored_positions(labels: list[int]) -> list[int]:
    return [position for position, label in enumerate(labels) if label != -100]


class EncodingCache:
    """Encoded prompts by key, up to a number of bytes.

    When it is full, new entries are not kept and none is evicted: trials use the same prompts in
    about the same order, so evicting the oldest would always lose the one needed next.
    """

    def __init__(self, max_bytes: int) -> None:
        """Create an empty store of `max_bytes` bytes."""
        self._entries: dict[Hashable, Any] = {}
        self._free_bytes = max_bytes

    def get(
        self, key: Hashable, encode: Callable[[], T], tensors: Callable[[T], Iterable[Tensor]]
    ) -> T:
        """Return the entry of a key, encoding it if it is not kept.

        Args:
            key: equal for inputs that the same processor encodes to equal tensors.
            encode: encodes it.
            tensors: returns an encoded prompt's tensors. Nobody may write to them.
        """
        if key in self._entries:
            return cast(T, self._entries[key])
        encoded = encode()
        size = ENTRY_OVERHEAD + sum(
            tensor.numel() * tensor.element_size() for tensor in tensors(encoded)
        )
        if size <= self._free_bytes:
            self._entries[key] = encoded
            self._free_bytes -= size
        return encoded


class ProcessEncodings:
    """The encoded prompts of the model that this process used last, if they are kept."""

    def __init__(self) -> None:
        """Keep nothing until `enable` is called."""
        self._enabled = False
        self._last: tuple[Hashable, EncodingCache] | None = None

    def enable(self) -> None:
        """Keep what is encoded from now on, for everything that this process runs."""
        self._enabled = True

    def disable(self) -> None:
        """Drop the kept prompts and keep none."""
        self._enabled, self._last = False, None

    def for_model(self, model: Hashable) -> EncodingCache | None:
        """Return the encodings of a model; None if nothing is kept.

        Args:
            model: equal for models whose processors encode alike; another model's encodings are
                dropped.
        """
        if not self._enabled:
            return None
        if self._last is None or self._last[0] != model:
            self._last = (model, EncodingCache(int(MEMORY_SHARE * total_memory())))
        return self._last[1]


#: The instance of this process.
ENCODINGS = ProcessEncodings()


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
