"""Judges' replies under `corrected`: forms × phrasing × languages, each with its right reading.

`answers/judges.json` holds rows of (language, reply, reading) by reader; null: it gives none, or
several.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.evaluation.benchmarks.hallusionbench import judge as hallusionbench
from chip_core.evaluation.benchmarks.objhal import judge as objhal
from chip_core.evaluation.text.reply_ratings import read_pair, read_rating

FILE = Path(__file__).parents[1] / "answers" / "judges.json"
REPLIES: dict[str, list[tuple[str, str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))


def read_names(reply: str) -> list[str] | None:
    try:
        return objhal.read_reply(reply)
    except objhal.UnreadableReplyError:
        return None


READERS: dict[str, Callable[[str], Any]] = {
    "mmhal": read_rating,
    "hallusionbench": hallusionbench.parse_verdict,
    "hallusionbench_same": hallusionbench.parse_agreement,
    "objhal": read_names,
    "llava_bench": read_pair,
}


@pytest.mark.parametrize("reader", READERS)
def test_replies_are_read_as_they_are_meant(reader: str) -> None:
    wrong = []
    for language, reply, reading in REPLIES[reader]:
        found = READERS[reader](reply)
        if (list(found) if isinstance(found, tuple) else found) != reading:
            wrong.append((language, reply, found, reading))
    assert wrong == []


def test_the_replies_are_many_in_five_languages() -> None:
    """So that a reader that is broken for a language or for what is no reading fails above."""
    assert REPLIES.keys() == READERS.keys()
    for reader, rows in REPLIES.items():
        assert {language for language, _, _ in rows} == {"en", "zh", "de", "fr", "es"}
        assert sum(reading is None for _, _, reading in rows) >= 3, reader
    assert all(len(rows) >= 180 for reader, rows in REPLIES.items() if reader[-4:] != "same")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "mark",
    ["<think>{}</think>", "◁think▷{}◁/think▷", "{}</think>", "<reasoning>\n{}\n</reasoning>\n"],
)
def test_reasoning_before_a_reply_changes_nothing(reader: str, mark: str) -> None:
    """Whatever it says: rating 1 of 6, incorrect, different, a list, two numbers."""
    reasoning = mark.format('Rating: 1. Incorrect, different. ["x"]\n2 3\n')
    for _, reply, reading in REPLIES[reader]:
        if reply and not reply.lstrip().startswith(("<|", "analysis", "Thinking...")):
            found = READERS[reader](reasoning + reply)
            assert (list(found) if isinstance(found, tuple) else found) == reading, reply


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrap", ["  {}\n\n", "\ufeff{}", "{}<|im_end|>"])
def test_what_stands_around_a_reply_changes_nothing(reader: str, wrap: str) -> None:
    for _, reply, reading in REPLIES[reader]:
        found = READERS[reader](wrap.format(reply))
        assert (list(found) if isinstance(found, tuple) else found) == reading, reply


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "piece",
    ["[", "0, ", "0 to 6 ", "rating: 5\n", "not ", "\n", " \n", "- a\n", "'a',", "不", "<a>"],
)
def test_long_replies_take_no_time(reader: str, piece: str) -> None:
    """50,000 characters, the longest that is read: 0.4 s at most; with the square it was 22 s."""
    start = time.process_time()
    READERS[reader]("x" + piece * (49_000 // len(piece)) + "x")
    assert time.process_time() - start < 5
    assert READERS[reader](piece * 100_000) in (None, [])  # longer: it is not read
