"""What no reader could read: kept, cut, counted and said."""

from __future__ import annotations

from chip_core.evaluation.unreadable import (
    MAX_LENGTH,
    count_unreadable,
    format_counts,
    format_example,
    unreadable,
)


def test_a_text_is_cut_and_on_one_line() -> None:
    assert unreadable("1", "it\n is\tso").text == "it is so"
    assert unreadable("1", "a\x1b[2Jb\ud800\u202ec").text == "a\ufffd[2Jb\ufffd\ufffdc"
    long = unreadable("1", "x" * 10_000).text
    assert (len(long), long[-1]) == (MAX_LENGTH, "…")


def test_counts_and_examples() -> None:
    """Seven answers, of which six differ, and one reply: first, middle and last are shown."""
    said = ["a", "b", "b", "c", "d", "e", "f" * 300]
    found = [unreadable(str(place), text) for place, text in enumerate(said)]
    counted = count_unreadable([*found, unreadable("r", "g", "reply")])
    assert (counted["answers"], counted["replies"]) == (7, 1)
    # of a, b, c, d, e, f…, g the places 0, 3 and 6
    assert [example["text"] for example in counted["examples"]] == ["a", "d", "g"]
    assert format_counts(counted) == (
        "7 answers unreadable (counted as wrong), 1 judge reply unreadable (missing)"
    )
    assert format_counts(count_unreadable(found[:1])) == "1 answer unreadable (counted as wrong)"
    assert format_counts(count_unreadable(())) == ""
    assert len(count_unreadable(found)["examples"][2]["text"]) == 100


def test_an_empty_text_is_said_to_be_empty() -> None:
    assert format_example({"item": "3", "text": ""}) == "3: (empty)"
    assert format_example({"item": "3", "text": "maybe"}) == "3: “maybe”"
