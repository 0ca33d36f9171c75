"""A study's figures on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.files import cell_text, column_title, notes, seeds_text
from orchestrator.report.summary import Figure, Outcome, Summary

METRICS_ABREAST = 4  # columns of figures that fit a terminal of 80


def summary_lines(summary: Summary) -> Iterator[RenderableType]:
    """Return the study's table and what has to be known of it."""
    metrics = list(summary.metrics)
    for start in range(0, len(metrics), METRICS_ABREAST):
        yield _summary_table(summary, metrics[start : start + METRICS_ABREAST])
    for note in notes(summary):
        yield Text(note, style="dim")


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
        benchmark, _, rest = column_title(summary, metric).rpartition("/")
        table.add_column(f"{benchmark}/\n{rest}", justify="right", no_wrap=True)
    for row in summary.rows:
        name = Text(row.name)
        if row.arm is not None:
            seeds = f"\n{'baseline, ' if row.arm.baseline else ''}n = {seeds_text(row)}"
            name.append(seeds, style="dim")
        cells = [_stacked(row.figures.get(metric)) for metric in metrics]
        table.add_row(name, *cells)
        table.add_row()
    return table


def _stacked(figure: Figure | None) -> Text:
    """Return a figure over its difference over the interval."""
    if figure is None:
        return Text("—")
    main, _, rest = cell_text(figure).partition(" (")
    difference, _, interval = rest.removesuffix(")").partition(" ")
    text = Text(main)
    if difference:
        text.append(f"\n{difference}\n{interval}", style="dim")
    return text


def result_lines(outcome: Outcome, workdir: Path, tracking: str) -> Iterator[RenderableType]:
    """Say what a run came to and where everything lies."""
    yield from summary_lines(outcome.summary)
    name = outcome.summary.plan.study.name
    for trial, reason in outcome.failed.items():
        yield Text(f"FAILED {trial}: {reason}", style="bold red")
    if outcome.interrupted:
        yield Text(f"stopped; go on with: chip-ablate run {name} --workdir {workdir}")
    elif outcome.executed == 0:
        yield Text("nothing to run: everything was done before")
    for path in outcome.report:
        yield Text(f"report: {path}")
    yield Text(f"runs: {tracking}  (see them: chip-ablate ui --workdir {workdir})")
