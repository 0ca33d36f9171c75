"""Collect a report's results for the terminal, for programs and for trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.report.formatting import (
    correction,
    difference_text,
    mean_text,
    metric_title,
    seeds_text,
    verdict_text,
    verdict_words,
)
from orchestrator.report.sections.answer import answer
from orchestrator.report.sections.notes import particulars
from orchestrator.report.summary import ArmRow, Figure, Summary
from orchestrator.report.writers.exports import as_json
from orchestrator.tracking.views import ArmView, PendingRuns, Status

WIDTH = 80  # columns of the terminal that tables are made for
_ARM = 16

#: A cell's text in parts, each with its style.
Cell = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table for the terminal: arms × as many metrics as fit."""

    heads: tuple[str, ...]  # heads of the metrics
    rows: tuple[tuple[Cell, ...], ...]  # the arm first


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a study."""

    study: str
    answer: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    left: int  # number of trials left to run
    data: Mapping[str, Any]  # for programs

    def kept(self) -> dict[str, Any]:
        """Return the results as JSON data."""
        return asdict(self)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Results:
        """Restore results from what `kept` returned.

        Raises:
            KeyError, TypeError, ValueError: the data are not such results.
        """
        grids = tuple(
            Grid(
                heads=tuple(map(str, grid["heads"])),
                rows=tuple(tuple(map(_cell, row)) for row in grid["rows"]),
            )
            for grid in raw["grids"]
        )
        return cls(
            study=raw["study"],
            answer=raw["answer"],
            grids=grids,
            notes=tuple(map(str, raw["notes"])),
            left=raw["left"],
            data=dict(raw["data"]),
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a study ended."""

    results: Results
    summarised: Callable[[], Summary] = field(repr=False)  # builds the summary if it is needed
    executed: int  # number of attempts of this run
    failed: Mapping[str, str]  # trial -> reason
    interrupted: bool
    limit: str | None  # limit that stopped it
    report: Sequence[Path]
    compare: str | None = None  # address of MLflow's comparison of the arms
    held_back: str | None = None  # why no further trial was started
    waiting: PendingRuns | None = None  # what is not yet in MLflow
    refused: Mapping[str, str] = field(default_factory=dict)  # what MLflow rejects, and why

    @cached_property
    def summary(self) -> Summary:
        """The study's summary."""
        return self.summarised()


def results_of(summary: Summary) -> Results:
    """Return the results of a summary."""
    means = (
        "Mean ± standard deviation over seeds; below it the difference from the baseline and its "
        "95 % interval, of that comparison alone."
        + (
            f" Verdicts: on {summary.decided[0]}, by {correction(summary)}'s method."
            if summary.plan.study.primary is not None
            else ""
        )
    )
    return Results(
        study=summary.plan.study.name,
        answer=answer(summary),
        grids=tuple(_grid(summary, metrics) for metrics in _abreast(summary)),
        notes=(means, *particulars(summary)),
        left=summary.left,
        data=as_json(summary),
    )


def _cell(raw: Any) -> Cell:
    return tuple((str(text), str(style)) for text, style in raw)


def _grid(summary: Summary, metrics: list[str]) -> Grid:
    """Return a table of arms × metrics, each figure with its difference and interval below."""
    heads = []
    for metric in metrics:
        benchmark, _, rest = metric_title(metric, summary.metrics[metric]).rpartition("/")
        heads.append(f"{benchmark}/\n{rest}")
    declared = summary.plan.study.primary
    primary = None if declared is None else declared.metric
    rows = []
    for row in summary.rows:
        name = [(row.name, "")]
        if row.arm is not None:
            kind = "baseline, " if row.arm.baseline else "other seeds, " if row.arm.placebo else ""
            seeds = f"\n{kind}n = {seeds_text(row)}"
            name.append((seeds, "dim"))
        first = row.figures.get(primary) if primary in metrics else None
        if first is not None and first.comparison is not None:
            name.append((f"\n{verdict_text(first.comparison)}", "italic"))
        rows.append((tuple(name), *(_stacked(row.figures.get(metric)) for metric in metrics)))
    return Grid(heads=tuple(heads), rows=tuple(rows))


def _abreast(summary: Summary) -> Iterator[list[str]]:
    """Yield lists of metrics that fit side by side in one table."""
    line: list[str] = []
    left = WIDTH - _ARM
    for metric in summary.metrics:
        title = metric_title(metric, summary.metrics[metric]).rpartition("/")
        cells = [text for row in summary.rows for text, _ in _stacked(row.figures.get(metric))]
        texts = [f"{title[0]}/", title[2], *(part for text in cells for part in text.split("\n"))]
        width = max(map(len, texts)) + 2  # with the space between columns
        if line and width > left:
            yield line
            line, left = [], WIDTH - _ARM
        line.append(metric)
        left -= width
    if line:
        yield line


def _stacked(figure: Figure | None) -> Cell:
    """Return a cell with a figure, its difference and its interval below each other."""
    difference, _, interval = difference_text(figure).partition(" ")
    below = ((f"\n{difference}\n{interval}", "dim"),) if difference else ()
    return ((mean_text(figure), ""), *below)


VERDICT = "chip.verdict"


def arm_views(summary: Summary) -> list[ArmView]:
    """Return each arm's means, deviations, differences, intervals and corrected p-values.

    Means and deviations are in the scorer's unit, like the trials' own figures; differences and
    their intervals are in points, as everywhere.
    """
    return [
        ArmView(
            arm=row.arm,
            figures=_figures(row, summary.scales),
            status=_status(row),
            tags=_tags(summary, row),
        )
        for row in summary.rows
        if row.arm is not None
    ]


def _figures(row: ArmRow, scales: Mapping[str, float]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, figure in row.figures.items():
        low, high = figure.interval or (None, None)
        found = figure.comparison
        scale = scales[name]
        parts = {
            name: figure.mean / scale,
            f"{name}.sd": None if figure.sd is None else figure.sd / scale,
            f"{name}.low": low,
            f"{name}.high": high,
            f"{name}.difference": figure.difference,
            f"{name}.p_adjusted": None if found is None else found.p_adjusted,
        }
        figures |= {key: value for key, value in parts.items() if value is not None}
    return figures


def _status(row: ArmRow) -> Status:
    states = set(row.states.values())
    if "failed" in states:
        return "FAILED"
    return "KILLED" if states & {"missing", "killed", "cut"} else "FINISHED"


def _tags(summary: Summary, row: ArmRow) -> dict[str, str | None]:
    """Return the verdict on the primary metric, None if there is none (any more)."""
    primary = summary.plan.study.primary
    figure = None if primary is None else row.figures.get(primary.metric)
    found = None if figure is None else figure.comparison
    return {VERDICT: None if found is None else verdict_words(found)}
