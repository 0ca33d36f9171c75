"""Count and show answers and judges' replies that their reader could not interpret.

They show a user when a reader fails, rather than a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: The kind of text: a model's own answer, which counts as wrong, or a judge's reply to it, which is
#: missing.
Source = Literal["answer", "reply"]
LONGEST = 500  # characters of a text that are kept with the scores
_SHOWN = 3  # texts that are shown as examples
_SHOWN_LONGEST = 100  # characters of each


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A text that its reader could not interpret, cut and on one line."""

    item: str
    text: str
    source: Source


def unreadable(item: str, text: str, source: Source = "answer") -> Unreadable:
    """Return a text that could not be read, in a form that can be stored and shown."""
    return Unreadable(item=item, text=_cut(_one_line(text), LONGEST), source=source)


def counts(found: Sequence[Unreadable]) -> dict[str, Any]:
    """Return how many answers and replies could not be read, with a few of them."""
    return {
        "answers": sum(entry.source == "answer" for entry in found),
        "replies": sum(entry.source == "reply" for entry in found),
        "examples": [
            {"item": entry.item, "text": _cut(entry.text, _SHOWN_LONGEST), "source": entry.source}
            for entry in _spread(found)
        ],
    }


def count_words(counted: Mapping[str, Any]) -> str:
    """Format the counts: `3 answers unreadable (counted as wrong)`; empty if there are none."""
    answers, replies = counted["answers"], counted["replies"]
    parts = [
        f"{answers:,} answer{'s' * (answers != 1)} unreadable (counted as wrong)" * (answers > 0),
        f"{replies:,} judge repl{'ies' if replies != 1 else 'y'} unreadable (missing)"
        * (replies > 0),
    ]
    return ", ".join(part for part in parts if part)


def example_words(example: Mapping[str, str]) -> str:
    """Format one text that could not be read."""
    return f"{example['item']}: {quoted(example['text'])}"


def quoted(text: str) -> str:
    """Return a text in quotation marks, or `(empty)`."""
    return f"“{text}”" if text else "(empty)"


def _spread(found: Sequence[Unreadable]) -> list[Unreadable]:
    """Return a few different texts, from the beginning, the middle and the end."""
    different = list({entry.text: entry for entry in reversed(found)}.values())[::-1]
    if len(different) <= _SHOWN:
        return different
    last = len(different) - 1
    return [different[place * last // (_SHOWN - 1)] for place in range(_SHOWN)]


def _one_line(text: str) -> str:
    """Return text without characters that move a terminal's cursor or cannot be stored."""
    flat = " ".join(text.split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in flat
    )


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
