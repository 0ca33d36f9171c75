"""A family's own marks in texts: `<image>`, `<|im_start|>`, `</s>` as words, not as what they do.

A tokenizer makes one token of a mark wherever it stands, and a processor takes each `<image>` for
the place of a picture. Chat templates write both into the same string as a row's texts. So a text
that holds a mark is rendered as a stand-in, and becomes text again where it is tokenized: between
the marks of the template, with `split_special_tokens`. Texts without marks go by untouched.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chip_core.errors import TrialError

#: What marks look like, by and large: `<|im_start|>`, `</s>`, `[INST]`.
_LIKE_A_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Za-z][\w/]*\]")

#: Attributes of a processor that are marks though its tokenizer may not call them special.
_PLACES = ("image_token", "video_token", "audio_token")

#: Stand-ins are private to whoever uses them, and tokenized nowhere.
_STAND_INS = range(0x100000, 0x10FFFE)


def may_hold_marks(text: str) -> bool:
    """Return whether a text holds what could be some family's mark; the family is not known."""
    return ("<" in text or "[" in text) and _LIKE_A_MARK.search(text) is not None


class Marks:
    """The marks of one processor, and texts in which they are text."""

    def __init__(self, processor: Any) -> None:
        """Read them off a processor with a tokenizer."""
        self._processor, self._tokenizer = processor, processor.tokenizer
        added = self._tokenizer.added_tokens_decoder.values()
        found = {
            *(token.content for token in added if token.special),
            *self._tokenizer.all_special_tokens,
            *(str(getattr(processor, name)) for name in _PLACES if getattr(processor, name, None)),
        }
        longest_first = sorted(filter(str.strip, found), key=lambda mark: (-len(mark), mark))
        # A tokenizer may fold letters before it looks for them.
        self._pattern = re.compile(
            f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})", re.IGNORECASE
        )

    def within(self, text: str) -> list[str]:
        """Return the marks that a text holds."""
        return [found.group() for found in self._pattern.finditer(text)]

    def problem(self, text: str) -> str | None:
        """Return which mark of a text its tokenizer cannot write as text; None if none."""
        held = self.within(text)
        if not held:
            return None
        if self._reads_twice():
            return held[0]
        ids = set(self._plain(text))
        for mark in held:
            token = self._tokenizer.convert_tokens_to_ids(mark)
            if token in ids and token not in (None, self._tokenizer.unk_token_id):
                return mark
        return None

    def ids(self, text: str) -> list[int]:
        """Return a text's ids, marks as text."""
        if self.within(text):
            return self._plain(text)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def hidden(self, *texts: str) -> tuple[Any, list[str]]:
        """Return a processor, and texts for it in which marks are text.

        They are the processor and the texts themselves where no text holds a mark.

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
                    raise TrialError(f"{printed(text)} {unwritable(mark)}")
                sign, said = next(signs), text.strip()
                stand_ins[sign] = said
                text = text.replace(said, sign, 1)  # a template may strip what is around it
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


class _Hiding:
    """A tokenizer that writes what stand-ins stand for as text."""

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
            self._ids(each, add_special_tokens)
            for each in ([text] if isinstance(text, str) else text)
        ]
        made: dict[str, Any] = {
            "input_ids": rows,
            "attention_mask": [[1] * len(row) for row in rows],
        }
        if isinstance(text, str) and return_tensors is None:
            made = {name: value[0] for name, value in made.items()}
        return BatchEncoding(made, tensor_type=return_tensors)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        closing: list[int] = []
        for number, (plain, run) in enumerate(self._runs(text)):
            if number == 0:
                ids = self._encoded(run, plain)
                if add_special_tokens:
                    whole = self._encoded(run, plain, add_special_tokens=True)
                    before = _place(whole, ids)
                    closing = whole[before + len(ids) :]
                    ids = whole[: before + len(ids)]
            else:
                ids += self._continued(run, plain)
        return ids + closing

    def _runs(self, text: str) -> Iterator[tuple[bool, str]]:
        """Yield the text in pieces, and whether marks in one are text.

        One that stood for a text reaches from mark to mark of what is around it, as a tokenizer
        that knew the difference would cut.
        """
        held = ""
        for piece in self._marks.split(text):
            said = piece
            for sign, words in self._texts.items():
                said = said.replace(sign, words)
            if said == piece:
                held += piece
                continue
            if held:
                yield False, held
            yield True, said
            held = ""
        if held:
            yield False, held

    def _continued(self, text: str, plain: bool) -> list[int]:
        """Return the ids of what follows something: without the space that a beginning may get."""
        before = self._encoded("\n", plain)
        ids = self._encoded("\n" + text, plain)
        return ids[len(before) :] if ids[: len(before)] == before else self._encoded(text, plain)

    def _encoded(self, text: str, plain: bool, *, add_special_tokens: bool = False) -> list[int]:
        options = {"split_special_tokens": True} if plain else {}
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens, **options)[
            "input_ids"
        ]
        return ids


def unwritable(mark: str) -> str:
    """Say what is wrong with a text that holds a mark."""
    return f"holds {mark}, a mark of the model that its tokenizer cannot write as text: take it out"


def printed(text: str) -> str:
    """Return a text's beginning for a message."""
    return f"the text {text[:40]!r}{'…' if len(text) > 40 else ''}"


def _place(whole: list[int], part: list[int]) -> int:
    """Return where ids begin in the same with special tokens around them."""
    places = range(len(whole) - len(part) + 1)
    return next((place for place in places if whole[place : place + len(part)] == part), 0)
