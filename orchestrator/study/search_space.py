"""Define a search: its keys, their values, its trials and its metric.

Every arm gets the same draws. They depend on the search's seed alone, not on the arm, the study's
seeds or the other keys. With more trials, the first ones stay the same.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chip_core.config.benchmark import BenchmarksConfig
from chip_core.evaluation.task import metric_name
from chip_core.utils.errors import ConfigError
from chip_core.utils.seeding import derive_seed

_SIGNIFICANT_DIGITS = (
    4  # significant digits of a drawn number, so that the value shown is the one tried
)


@dataclass(frozen=True, kw_only=True)
class SelectMetric:
    """A metric of a benchmark under `select`, the only kind that a search can use.

    It cannot name a metric under `report`: its name always begins with `select/`.
    """

    benchmark: str
    metric: str
    goal: Literal["minimize", "maximize"]

    @property
    def key(self) -> str:
        """The key of its evaluation: "select/amber"."""
        return f"select/{self.benchmark}"

    @property
    def name(self) -> str:
        """Its full name: "select/amber/chair"."""
        return metric_name("select", self.benchmark, self.metric)

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better than another."""
        return value < other if self.goal == "minimize" else value > other


@dataclass(frozen=True, kw_only=True)
class Values:
    """A list of values of a key."""

    options: tuple[Any, ...]

    def draw(self, seed: int) -> Any:
        """Draw one of the values uniformly."""
        return random.Random(seed).choice(self.options)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A range of values of a key; both bounds are included."""

    low: float
    high: float
    log: bool = False  # log-uniform: 1e-6 to 1e-5 is as likely as 1e-5 to 1e-4

    @property
    def is_integer(self) -> bool:
        """Whether both bounds, and so all values, are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, seed: int) -> float:
        """Draw a number with four significant digits."""
        fraction = random.Random(seed).random()
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + fraction * (high - low))
        elif self.is_integer:
            return int(self.low + math.floor(fraction * (self.high - self.low + 1)))
        else:
            value = self.low + fraction * (self.high - self.low)
        rounded = float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
        clipped = min(max(rounded, self.low), self.high)
        return round(clipped) if self.is_integer else clipped


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A study's search, with the same budget for every arm, on `select` alone."""

    keys: Mapping[str, Values | Range]  # dotted keys of the recipe
    trials: int  # of an arm
    metric: SelectMetric
    seed: int  # of the draws and of every training of the search

    @property
    def combination_count(self) -> int | None:
        """The number of combinations of values, or None if a key has a range."""
        sizes = [len(space.options) for space in self.keys.values() if isinstance(space, Values)]
        return math.prod(sizes) if len(sizes) == len(self.keys) else None

    def make_draws(self) -> tuple[dict[str, Any], ...]:
        """Return the sets of values that each arm tries, in order, each as key -> value.

        Without a range, these are all combinations in the file's order, or a seeded subset of them.
        With a range, each key is drawn independently, seeded.
        """
        option_lists = [space.options for space in self.keys.values() if isinstance(space, Values)]
        if len(option_lists) == len(self.keys):
            grid = [
                dict(zip(self.keys, values, strict=True))
                for values in itertools.product(*option_lists)
            ]
            if self.trials >= len(grid):
                return tuple(grid)
            return tuple(sorted(grid, key=self._draw_order)[: self.trials])
        return tuple(
            {
                key: values.draw(derive_seed("tune", self.seed, key, number))
                for key, values in self.keys.items()
            }
            for number in range(self.trials)
        )

    def check(self, benchmarks: BenchmarksConfig, seeds: tuple[int, ...]) -> None:
        """Check that the search uses nothing that is reported.

        Raises:
            ConfigError: its metric is not of `select`, or it trains with a seed of the study's.
        """
        problems = [
            problem
            for problem in (
                find_metric_problem(self.metric, benchmarks),
                find_seed_problem(self.seed, seeds),
            )
            if problem is not None
        ]
        if problems:
            raise ConfigError(problems)

    def _draw_order(self, values: Mapping[str, Any]) -> int:
        return derive_seed("tune", self.seed, *(f"{key}={values[key]!r}" for key in sorted(values)))


def find_metric_problem(metric: SelectMetric, benchmarks: BenchmarksConfig) -> str | None:
    """Return the problem with the metric of a search, if any."""
    if metric.benchmark in {settings.name for settings in benchmarks.select}:
        return None
    return (
        f"tune.metric: '{metric.benchmark}' is not under `select`, and only those benchmarks can "
        "be used to choose: name one of them"
    )


def find_seed_problem(seed: int, seeds: tuple[int, ...]) -> str | None:
    """Return the problem with the seed of a search, if any."""
    if seed not in seeds:
        return None
    return (
        f"tune.seed: {seed} is one of the study's seeds: a training that was chosen for its luck "
        "would be reported: use another"
    )
