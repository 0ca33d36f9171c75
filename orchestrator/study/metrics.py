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


def benchmark_goals(
    benchmarks: BenchmarksConfig, wrong: Callable[[str, str], None]
) -> dict[str, Goal]:
    """Return the goal of every metric that a study will have.

    Args:
        benchmarks: benchmarks of the study file.
        wrong: called with (key, problem).
    """
    goals: dict[str, Goal] = {}
    for side, settings in list_sides(benchmarks):
        place = getattr(benchmarks, side).index(settings)
        key = f"benchmarks.{side}[{place}]"
        try:
            benchmark = find_benchmark(settings.name)
        except ValueError as error:
            wrong(key, str(error))
            continue
        for problem in find_settings_problems(settings, benchmark):
            wrong(key, problem)
        for metric, info in benchmark.metrics.items():
            goals[metric_name(side, settings.name, metric)] = info.goal
    for side, settings, problem in find_declared_overlaps(benchmarks):
        wrong(f"benchmarks.{side}[{getattr(benchmarks, side).index(settings)}]", problem)
    return goals


Wrong = Callable[[str, str], None]
#: Maps a cell as written, and its key in the file, to factor -> level.
CellOf = Callable[[Mapping[str, Any], str], dict[str, str] | None]
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


def parse_declared(
    primary: DeclaredFile | None,
    secondary: Sequence[DeclaredFile],
    goals: Mapping[str, Goal],
    wrong: Wrong,
) -> tuple[DeclaredMetric | None, tuple[DeclaredMetric, ...]]:
    """Return the primary and the secondary metrics, and report problems with them to `wrong`."""
    first = None if primary is None else _declared(primary, "primary", goals, wrong)
    seen = set() if primary is None else {primary.metric}
    others = []
    for place, written in enumerate(secondary):
        where = f"secondary[{place}]"
        if written.metric in seen:
            wrong(where, f"'{written.metric}' is declared twice: remove one")
            continue
        seen.add(written.metric)
        found = _declared(written, where, goals, wrong)
        others += [] if found is None else [found]
    return first, tuple(others)


def parse_published(
    entries: Sequence[PublishedFile], cell: CellOf, goals: Mapping[str, Goal], wrong: Wrong
) -> tuple[PublishedFigures, ...]:
    """Return published figures, and report problems with them to `wrong`.

    Args:
        entries: entries of the study file.
        cell: converts an `arm:` to a cell, and reports a problem if it is none.
        goals: the study's metrics.
        wrong: called with (key, problem).
    """
    found = []
    for place, entry in enumerate(entries):
        where = f"published[{place}]"
        for metric, value in entry.values.items():
            if metric not in goals:
                wrong(f"{where}.values", _unknown(metric, goals))
            if not math.isfinite(value):
                wrong(f"{where}.values.{metric}", f"{value} is no figure: leave it out")
        arm = None if isinstance(entry.arm, str) else cell(entry.arm, f"{where}.arm")
        found.append(PublishedFigures(source=entry.source, arm=arm, values=entry.values))
    return tuple(found)


def _declared(
    written: DeclaredFile, where: str, goals: Mapping[str, Goal], wrong: Wrong
) -> DeclaredMetric | None:
    metric = written.metric
    if metric not in goals:
        wrong(f"{where}.metric", _unknown(metric, goals))
        return None
    if metric.startswith("select/"):
        wrong(f"{where}.metric", f"'{metric}' is tuned on: name a metric under `report`")
    goal = goals[metric]
    if written.goal not in (None, goal):
        wrong(f"{where}.goal", f"'{metric}' is to be {goal}d: write `goal: {goal}`")
    return DeclaredMetric(metric=metric, goal=goal, smallest_difference=written.smallest_difference)


def _unknown(metric: str, goals: Mapping[str, Goal]) -> str:
    reported = [name for name in goals if not name.startswith("select/")]
    listed = suggest(metric, reported) if reported else "add a benchmark under `benchmarks:`"
    return f"unknown metric '{metric}': {listed}"
