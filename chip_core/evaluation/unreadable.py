"""Count and show answers and judges' replies that their reader could not interpret.

They show a user when a reader fails, rather than a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chip_core.utils.errors import to_printable

#: The kind of text: a model's own answer, which counts as wrong, or a judge's reply to it, which is
#: missing.
Source = Literal["answer", "reply"]
MAX_LENGTH = 500  # characters of a text that are kept with the scores
_MAX_EXAMPLES = 3  # texts that are shown as examples
_MAX_EXAMPLE_LENGTH = 100  # characters of each


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A text that its reader could not interpret, cut and on one line."""

    item: str
    text: str
    source: Source


def unreadable(item: str, text: str, source: Source = "answer") -> Unreadable:
    """Return a text that could not be read, in a form that can be stored and shown."""
    one_line = to_printable(" ".join(text.split()))
    return Unreadable(item=item, text=truncate(one_line, MAX_LENGTH), source=source)


def count_unreadable(unreadable_texts: Sequence[Unreadable]) -> dict[str, Any]:
    """Return how many answers and replies could not be read, with a few of them."""
    return {
        "answers": sum(entry.source == "answer" for entry in unreadable_texts),
        "replies": sum(entry.source == "reply" for entry in unreadable_texts),
        "examples": [
            {
                "item": entry.item,
                "text": truncate(entry.text, _MAX_EXAMPLE_LENGTH),
                "source": entry.source,
            }
            for entry in _pick_examples(unreadable_texts)
        ],
    }


def format_counts(counts_read: Mapping[str, Any]) -> str:
    """Format the counts: `3 answers unreadable (counted as wrong)`; empty if there are none."""
    answers, replies = counts_read["answers"], counts_read["replies"]
    parts = [
        f"{answers:,} answer{'s' * (answers != 1)} unreadable (counted as wrong)" * (answers > 0),
        f"{replies:,} judge repl{'ies' if replies != 1 else 'y'} unreadable (missing)"
        * (replies > 0),
    ]
    return ", ".join(part for part in parts if part)


def format_example(example: Mapping[str, str]) -> str:
    """Format one text that could not be read."""
    return f"{example['item']}: {quote(example['text'])}"


def quote(text: str) -> str:
    """Return a text in quotation marks, or `(empty)`."""
    return f"“{text}”" if text else "(empty)"


def _pick_examples(unreadable_texts: Sequence[Unreadable]) -> list[Unreadable]:
    """Return a few different texts, from the beginning, the middle and the end."""
    distinct = list({entry.text: entry for entry in reversed(unreadable_texts)}.values())[::-1]
    if len(distinct) <= _MAX_EXAMPLES:
        return distinct
    last_index = len(distinct) - 1
    return [distinct[index * last_index // (_MAX_EXAMPLES - 1)] for index in range(_MAX_EXAMPLES)]


def truncate(text: str, max_length: int) -> str:
    """Return a text of at most so many characters; a cut one ends in an ellipsis."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"
