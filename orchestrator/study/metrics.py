"""Check a study's benchmarks and the metrics that it declares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from chip_core.config.fields import Shorthand
from chip_core.config.trial import BenchmarksConfig
from chip_core.evaluation.items import find_benchmark, find_settings_problems
from chip_core.evaluation.readiness import find_declared_overlaps, list_sides
from chip_core.evaluation.task import metric_name
from chip_core.utils.registry import suggest
from orchestrator.study.model import DeclaredMetric, PublishedFigures

Goal = Literal["minimize", "maximize"]


def metric_goals(
    benchmarks: BenchmarksConfig, report_problem: Callable[[str, str], None]
) -> dict[str, Goal]:
    """Return the goal of every metric that a study will have.

    Args:
        benchmarks: benchmarks of the study file.
        report_problem: called with (key, problem).
    """
    goals: dict[str, Goal] = {}
    for side, settings in list_sides(benchmarks):
        index = getattr(benchmarks, side).index(settings)
        key = f"benchmarks.{side}[{index}]"
        try:
            benchmark = find_benchmark(settings.name)
        except ValueError as error:
            report_problem(key, str(error))
            continue
        for problem in find_settings_problems(settings, benchmark):
            report_problem(key, problem)
        for metric, info in benchmark.metrics.items():
            goals[metric_name(side, settings.name, metric)] = info.goal
    for side, settings, problem in find_declared_overlaps(benchmarks):
        report_problem(f"benchmarks.{side}[{getattr(benchmarks, side).index(settings)}]", problem)
    return goals


ProblemReporter = Callable[[str, str], None]
#: Maps a cell as written, and its key in the file, to factor -> level.
CellParser = Callable[[Mapping[str, Any], str], dict[str, str] | None]
#: Value of an `arm:` that stands for the untrained model.
UNTRAINED = "base"


class DeclaredFile(Shorthand):
    """A metric as written: its name alone, or with what is known of it."""

    shorthand = "metric"

    metric: str
    goal: Goal | None = None
    smallest_difference: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class PublishedFile(BaseModel):
    """Figures of one arm from one source, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    arm: dict[str, Any] | Literal["base"]
    values: Annotated[dict[str, float], Field(min_length=1)]


def parse_declared_metrics(
    primary: DeclaredFile | None,
    secondary: Sequence[DeclaredFile],
    goals: Mapping[str, Goal],
    report_problem: ProblemReporter,
) -> tuple[DeclaredMetric | None, tuple[DeclaredMetric, ...]]:
    """Return the primary and the secondary metrics, and report problems with them."""
    primary_metric = (
        None if primary is None else _parse_metric(primary, "primary", goals, report_problem)
    )
    seen_metrics = set() if primary is None else {primary.metric}
    secondary_metrics = []
    for index, entry in enumerate(secondary):
        key_path = f"secondary[{index}]"
        if entry.metric in seen_metrics:
            report_problem(key_path, f"'{entry.metric}' is declared twice: remove one")
            continue
        seen_metrics.add(entry.metric)
        metric = _parse_metric(entry, key_path, goals, report_problem)
        secondary_metrics += [] if metric is None else [metric]
    return primary_metric, tuple(secondary_metrics)


def parse_published(
    entries: Sequence[PublishedFile],
    parse_cell: CellParser,
    goals: Mapping[str, Goal],
    report_problem: ProblemReporter,
) -> tuple[PublishedFigures, ...]:
    """Return published figures, and report problems with them to `report_problem`.

    Args:
        entries: entries of the study file.
        parse_cell: converts an `arm:` to a cell, and reports a problem if it is none.
        goals: the study's metrics.
        report_problem: called with (key, problem).
    """
    figures = []
    for index, entry in enumerate(entries):
        key_path = f"published[{index}]"
        for metric, value in entry.values.items():
            if metric not in goals:
                report_problem(f"{key_path}.values", _unknown_metric_problem(metric, goals))
            if not math.isfinite(value):
                report_problem(
                    f"{key_path}.values.{metric}", f"{value} is not a number: leave it out"
                )
        arm = None if isinstance(entry.arm, str) else parse_cell(entry.arm, f"{key_path}.arm")
        figures.append(PublishedFigures(source=entry.source, arm=arm, values=entry.values))
    return tuple(figures)


def _parse_metric(
    entry: DeclaredFile, key_path: str, goals: Mapping[str, Goal], report_problem: ProblemReporter
) -> DeclaredMetric | None:
    metric = entry.metric
    if metric not in goals:
        report_problem(f"{key_path}.metric", _unknown_metric_problem(metric, goals))
        return None
    if metric.startswith("select/"):
        report_problem(
            f"{key_path}.metric", f"'{metric}' is tuned on: name a metric under `report`"
        )
    goal = goals[metric]
    if entry.goal not in (None, goal):
        report_problem(f"{key_path}.goal", f"'{metric}' must be {goal}d: write `goal: {goal}`")
    return DeclaredMetric(metric=metric, goal=goal, smallest_difference=entry.smallest_difference)


def _unknown_metric_problem(metric: str, goals: Mapping[str, Goal]) -> str:
    reported_metrics = [name for name in goals if not name.startswith("select/")]
    choices = (
        suggest(metric, reported_metrics)
        if reported_metrics
        else "add a benchmark under `benchmarks:`"
    )
    return f"unknown metric '{metric}': {choices}"
