"""Print a study's figures on the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.formatting import counted
from orchestrator.report.results import Grid, Outcome, Results
from orchestrator.report.writers.next_steps import tracking_lines


def report_lines(results: Results, files: Sequence[Path]) -> Iterator[RenderableType]:
    """Return the answer, where the report lies, the table and what has to be known of it."""
    yield Text(results.answer, style="bold")
    if files:
        yield _address(f"report: {files[0]}")
    yield Text("")
    for grid in results.grids:
        yield _table(results.study, grid)
    for note in results.notes:
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
    yield from report_lines(outcome.results, outcome.report)
    for trial, reason in outcome.failed.items():
        yield Text(f"FAILED {trial}: {reason}", style="bold red")
    if outcome.interrupted or outcome.limit:
        why = f" at {outcome.limit}" if outcome.limit else ""
        left = counted(outcome.results.left, "trial")
        yield _address(f"stopped{why}: {left} left; go on with: {command}")
    elif outcome.held_back is not None:
        yield _address(f"nothing more was begun: {outcome.held_back}; go on with: {command}")
    elif outcome.executed == 0:
        yield Text("nothing to run: everything was done before")
    pages = shlex.join(["chip-ablate", "ui", "--workdir", str(workdir)])
    yield _address(f"runs: {tracking}  (see them: {pages})")
    for line in tracking_lines(outcome.waiting, sync, outcome.refused):
        yield _address(line)
    if outcome.compare is not None:
        yield _address(f"arms side by side: {outcome.compare}")


def show(console: Console, lines: Iterable[RenderableType]) -> None:
    """Print lines; an address stays in one piece, to be clicked or copied."""
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, Text) and bool(line.no_wrap))


def _address(text: str) -> Text:
    return Text(text, no_wrap=True)


def _table(study: str, grid: Grid) -> Table:
    table = Table(
        title=Text(study, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("\narm", min_width=15)
    for head in grid.heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*(Text.assemble(*cell) for cell in row))
        table.add_row()
    return table
