"""Build the section on unreadable answers and replies, with examples."""

from __future__ import annotations

from collections.abc import Sequence

from chip_core.evaluation.unreadable import quote
from orchestrator.report.formatting import format_count
from orchestrator.report.layout import Block, Table, TextBlock, make_columns, text_row
from orchestrator.report.summary import UNTRAINED, Summary
from orchestrator.report.unread_counts import UnreadCount

_SOURCE_NAMES = {"answer": "answer", "reply": "judge's reply"}


def unread_blocks(summary: Summary) -> list[Block]:
    """Return the section's blocks; empty if everything could be read."""
    counts = summary.unread
    if not counts:
        return []
    return [
        TextBlock(
            lines=(
                "A model's answer in which no verdict or letter was found counts as wrong; a "
                "judge's reply without a rating or verdict is missing. If an arm has many, or "
                "more than another, its figures depend on the wording of its answers as much as "
                "on their quality: look at them before you trust a difference.",
            )
        ),
        _count_table(counts),
        _example_table(counts),
    ]


def _count_table(counts: Sequence[UnreadCount]) -> Table:
    return Table(
        name="unreadable",
        caption="Answers and judges' replies that could not be read, over all trials of an arm.",
        columns=make_columns(
            "benchmark", "arm", "trials", "answers scored", "unreadable", "%",
            "judge's replies unreadable",
            text=(0, 1),
        ),
        rows=tuple(
            text_row(
                count.benchmark,
                count.arm,
                str(count.trials),
                f"{count.scored:,}",
                f"{count.answers:,}",
                f"{count.share:.1f}",
                f"{count.replies:,}",
                kind="untrained" if count.arm == UNTRAINED else "",
            )
            for count in counts
        ),
    )  # fmt: skip


def _example_table(counts: Sequence[UnreadCount]) -> Table:
    rows = [
        text_row(
            count.benchmark, trial, example["item"], _SOURCE_NAMES[example["source"]],
            quote(example["text"]),
        )
        for count in counts
        for trial, example in count.examples
    ]  # fmt: skip
    return Table(
        name="unreadable-examples",
        caption=f"{format_count(len(rows), 'text')} of those, cut; every one is in the trial's "
        "scores/*.json.",
        columns=make_columns("benchmark", "trial", "item", "what", "text", text=(0, 1, 2, 3, 4)),
        rows=tuple(rows),
    )
