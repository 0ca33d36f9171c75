"""The benchmarks of a study file: known, scored by a protocol they know, and tuned on or quoted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from chip_core.config import BenchmarksConfig
from chip_core.evaluation.apart import declared_overlaps
from chip_core.evaluation.asked import find_benchmark, settings_problems
from chip_core.evaluation.readiness import sides
from chip_core.evaluation.task import metric_name

Goal = Literal["minimize", "maximize"]


def benchmark_goals(
    benchmarks: BenchmarksConfig, wrong: Callable[[str, str], None]
) -> dict[str, Goal]:
    """Return metric -> goal of every figure that a study will have.

    Args:
        benchmarks: as the file has them.
        wrong: told (key, what is wrong).
    """
    goals: dict[str, Goal] = {}
    for side, settings in sides(benchmarks):
        place = getattr(benchmarks, side).index(settings)
        key = f"benchmarks.{side}[{place}]"
        try:
            benchmark = find_benchmark(settings.name)
        except ValueError as error:
            wrong(key, str(error))
            continue
        for problem in settings_problems(settings, benchmark):
            wrong(key, problem)
        for metric, info in benchmark.metrics.items():
            goals[metric_name(side, settings.name, metric)] = info.goal
    for side, settings, problem in declared_overlaps(benchmarks):
        wrong(f"benchmarks.{side}[{getattr(benchmarks, side).index(settings)}]", problem)
    return goals
