"""A study's figures on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.answer import answer
from orchestrator.report.notes import particulars
from orchestrator.report.summary import Figure, Outcome, Summary
from orchestrator.report.tracked import tracked_lines
from orchestrator.report.words import (
    correction,
    counted,
    difference_text,
    mean_text,
    metric_title,
    seeds_text,
    verdict_text,
)

WIDTH = 80  # columns of a terminal that a table is made for
_ARM = 16


def report_lines(summary: Summary, files: Sequence[Path]) -> Iterator[RenderableType]:
    """Return the answer, where the report lies, the table and what has to be known of it."""
    yield Text(answer(summary), style="bold")
    if files:
        yield _address(f"report: {files[0]}")
    yield Text("")
    for metrics in _abreast(summary):
        yield _summary_table(summary, metrics)
    yield Text(
        "Mean ± standard deviation over seeds; below it the difference from the baseline and its "
        "95 % interval, of that comparison alone."
        + (
            f" Verdicts: on {summary.decided[0]}, by {correction(summary)}'s method."
            if summary.plan.study.primary is not None
            else ""
        ),
        style="dim",
    )
    for note in particulars(summary):
        yield Text(note, style="dim")


def result_lines(
    outcome: Outcome, workdir: Path, tracking: str, command: str, sync: str
) -> Iterator[RenderableType]:
    """Say what a run came to and where everything lies.

    Args:
        outcome: what it came to.
        workdir: the work directory.
        tracking: the tracking URI.
        command: the one to go on with.
        sync: the command that sends what waits.
    """
    yield from report_lines(outcome.summary, outcome.report)
    for trial, reason in outcome.failed.items():
        yield Text(f"FAILED {trial}: {reason}", style="bold red")
    if outcome.interrupted or outcome.limit:
        why = f" at {outcome.limit}" if outcome.limit else ""
        left = counted(outcome.summary.left, "trial")
        yield _address(f"stopped{why}: {left} left; go on with: {command}")
    elif outcome.held_back is not None:
        yield _address(f"nothing more was begun: {outcome.held_back}; go on with: {command}")
    elif outcome.executed == 0:
        yield Text("nothing to run: everything was done before")
    pages = shlex.join(["chip-ablate", "ui", "--workdir", str(workdir)])
    yield _address(f"runs: {tracking}  (see them: {pages})")
    for line in tracked_lines(outcome.waiting, sync, outcome.refused):
        yield _address(line)
    if outcome.compare is not None:
        yield _address(f"arms side by side: {outcome.compare}")


def show(console: Console, lines: Iterable[RenderableType]) -> None:
    """Print lines; an address stays in one piece, to be clicked or copied."""
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, Text) and bool(line.no_wrap))


def _address(text: str) -> Text:
    return Text(text, no_wrap=True)


def _summary_table(summary: Summary, metrics: list[str]) -> Table:
    """Return arms × metrics; below each figure its difference and the interval of that."""
    title = Text(summary.plan.study.name, style="bold")
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("\narm", min_width=15)
    for metric in metrics:
        benchmark, _, rest = metric_title(metric, summary.metrics[metric]).rpartition("/")
        table.add_column(f"{benchmark}/\n{rest}", justify="right", no_wrap=True)
    declared = summary.plan.study.primary
    primary = None if declared is None else declared.metric
    for row in summary.rows:
        name = Text(row.name)
        if row.arm is not None:
            seeds = f"\n{'baseline, ' if row.arm.baseline else ''}n = {seeds_text(row)}"
            name.append(seeds, style="dim")
        first = row.figures.get(primary) if primary in metrics else None
        if first is not None and first.comparison is not None:
            name.append(f"\n{verdict_text(first.comparison)}", style="italic")
        cells = [_stacked(row.figures.get(metric)) for metric in metrics]
        table.add_row(name, *cells)
        table.add_row()
    return table


def _abreast(summary: Summary) -> Iterator[list[str]]:
    """Yield the metrics that stand side by side in one table, as many as fit."""
    line: list[str] = []
    left = WIDTH - _ARM
    for metric in summary.metrics:
        cells = [_stacked(row.figures.get(metric)).plain for row in summary.rows]
        title = metric_title(metric, summary.metrics[metric]).rpartition("/")
        texts = [f"{title[0]}/", title[2], *(part for cell in cells for part in cell.split("\n"))]
        width = max(map(len, texts)) + 2  # with what stands between columns
        if line and width > left:
            yield line
            line, left = [], WIDTH - _ARM
        line.append(metric)
        left -= width
    if line:
        yield line


def _stacked(figure: Figure | None) -> Text:
    """Return a figure over its difference over the interval."""
    text = Text(mean_text(figure))
    difference, _, interval = difference_text(figure).partition(" ")
    if difference:
        text.append(f"\n{difference}\n{interval}", style="dim")
    return text
