"""Collect a report's results for the terminal, for programs and for trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.report.formatting import (
    correction_name,
    format_difference,
    format_mean,
    format_seeds,
    format_verdict,
    metric_title,
    verdict_label,
)
from orchestrator.report.sections.answer import answer_sentence
from orchestrator.report.sections.notes import study_notes
from orchestrator.report.summary import ArmMetric, ArmRow, Summary
from orchestrator.report.writers.exports import summary_to_json
from orchestrator.tracking.views import ArmView, PendingRuns, Status

TABLE_WIDTH = 80  # columns of the terminal that tables are made for
_ARM_WIDTH = 16

#: A cell's text in parts, each with its style.
Cell = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class ResultsTable:
    """A table for the terminal: arms × as many metrics as fit."""

    heads: tuple[str, ...]  # heads of the metrics
    rows: tuple[tuple[Cell, ...], ...]  # the arm first


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a study."""

    study: str
    answer: str
    grids: tuple[ResultsTable, ...]
    notes: tuple[str, ...]
    left: int  # number of trials left to run
    data: Mapping[str, Any]  # for programs


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run of a study ended."""

    results: Results
    make_summary: Callable[[], Summary] = field(repr=False)  # builds the summary if it is needed
    executed: int  # number of attempts of this run
    failed: Mapping[str, str]  # trial -> reason
    interrupted: bool
    limit: str | None  # limit that stopped it
    report: Sequence[Path]
    comparison_url: str | None = None  # address of MLflow's comparison of the arms
    drain_reason: str | None = None  # why no further trial was started
    waiting: PendingRuns | None = None  # what is not yet in MLflow
    rejected_names: Mapping[str, str] = field(default_factory=dict)  # what MLflow rejects, and why

    @cached_property
    def summary(self) -> Summary:
        """The study's summary."""
        return self.make_summary()


def build_results(summary: Summary) -> Results:
    """Return the results of a summary."""
    mean_note = (
        "Mean ± standard deviation over seeds; below it the difference from the baseline and its "
        "95 % interval, of that comparison alone."
        + (
            f" Verdicts: on {summary.verdict_metrics[0]}, by {correction_name(summary)}'s method."
            if summary.plan.study.primary is not None
            else ""
        )
    )
    return Results(
        study=summary.plan.study.name,
        answer=answer_sentence(summary),
        grids=tuple(_build_results_table(summary, metrics) for metrics in _split_metrics(summary)),
        notes=(mean_note, *study_notes(summary)),
        left=summary.remaining,
        data=summary_to_json(summary),
    )


def _build_results_table(summary: Summary, metrics: list[str]) -> ResultsTable:
    """Return a table of arms × metrics, each figure with its difference and interval below."""
    heads = []
    for metric in metrics:
        benchmark, _, title = metric_title(metric, summary.metrics[metric]).rpartition("/")
        heads.append(f"{benchmark}/\n{title}")
    primary = summary.plan.study.primary
    verdict_metric = primary.metric if primary is not None and primary.metric in metrics else None
    rows = []
    for row in summary.rows:
        name = [(row.name, "")]
        if row.arm is not None:
            role = "baseline, " if row.arm.baseline else "other seeds, " if row.arm.placebo else ""
            seeds = f"\n{role}n = {format_seeds(row)}"
            name.append((seeds, "dim"))
        comparison = row.comparison(verdict_metric)
        if comparison is not None:
            name.append((f"\n{format_verdict(comparison)}", "italic"))
        rows.append((tuple(name), *(_stack_cell(row.figures.get(metric)) for metric in metrics)))
    return ResultsTable(heads=tuple(heads), rows=tuple(rows))


def _split_metrics(summary: Summary) -> Iterator[list[str]]:
    """Yield lists of metrics that fit side by side in one table."""
    group: list[str] = []
    remaining = TABLE_WIDTH - _ARM_WIDTH
    for metric in summary.metrics:
        title = metric_title(metric, summary.metrics[metric]).rpartition("/")
        cells = [text for row in summary.rows for text, _ in _stack_cell(row.figures.get(metric))]
        texts = [
            f"{title[0]}/",
            title[2],
            *(line_text for text in cells for line_text in text.split("\n")),
        ]
        width = max(map(len, texts)) + 2  # with the space between columns
        if group and width > remaining:
            yield group
            group, remaining = [], TABLE_WIDTH - _ARM_WIDTH
        group.append(metric)
        remaining -= width
    if group:
        yield group


def _stack_cell(arm_metric: ArmMetric | None) -> Cell:
    """Return a cell with a mean, its difference and its interval below each other."""
    difference, _, interval = format_difference(arm_metric).partition(" ")
    below = ((f"\n{difference}\n{interval}", "dim"),) if difference else ()
    return ((format_mean(arm_metric), ""), *below)


VERDICT_TAG = "chip.verdict"


def build_arm_views(summary: Summary) -> list[ArmView]:
    """Return each arm's means, deviations, differences, intervals and corrected p-values.

    Means and deviations are in the scorer's unit, like the trials' own figures; differences and
    their intervals are in points, as everywhere.
    """
    return [
        ArmView(
            arm=row.arm,
            figures=_arm_metrics(row, summary.scales),
            status=_run_status(row),
            tags=_verdict_tags(summary, row),
        )
        for row in summary.rows
        if row.arm is not None
    ]


def _arm_metrics(row: ArmRow, scales: Mapping[str, float]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, figure in row.figures.items():
        low, high = figure.interval or (None, None)
        comparison = figure.comparison
        scale = scales[name]
        parts = {
            name: figure.mean / scale,
            f"{name}.sd": None if figure.sd is None else figure.sd / scale,
            f"{name}.low": low,
            f"{name}.high": high,
            f"{name}.difference": figure.difference,
            f"{name}.p_adjusted": None if comparison is None else comparison.p_adjusted,
        }
        figures |= {key: value for key, value in parts.items() if value is not None}
    return figures


def _run_status(row: ArmRow) -> Status:
    states = set(row.states.values())
    if "failed" in states:
        return "FAILED"
    return "KILLED" if states & {"missing", "killed", "cut"} else "FINISHED"


def _verdict_tags(summary: Summary, row: ArmRow) -> dict[str, str | None]:
    """Return the verdict on the primary metric, None if there is none (any more)."""
    primary = summary.plan.study.primary
    comparison = row.comparison(None if primary is None else primary.metric)
    return {VERDICT_TAG: None if comparison is None else verdict_label(comparison)}
