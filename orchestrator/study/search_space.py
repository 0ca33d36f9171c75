"""Define a search: its keys, their values, its trials and its metric.

Every arm gets the same draws. They are functions of the search's seed alone: no arm, seed of the
study, or other key moves them, and more trials are the same ones and more.
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
from chip_core.utils.seeding import derived_seed

_DIGITS = 4  # significant ones of a drawn number: what is shown is what was tried


@dataclass(frozen=True, kw_only=True)
class SelectMetric:
    """A figure of a benchmark under `select`: all that a search can be judged by.

    It has no way of naming a figure under `report`: its name always begins with `select/`.
    """

    benchmark: str
    metric: str
    goal: Literal["minimize", "maximize"]

    @property
    def key(self) -> str:
        """Its evaluation: "select/amber"."""
        return f"select/{self.benchmark}"

    @property
    def name(self) -> str:
        """Its full name: "select/amber/chair"."""
        return metric_name("select", self.benchmark, self.metric)

    def better(self, value: float, than: float) -> bool:
        """Return whether a value is better than another, and not as good."""
        return value < than if self.goal == "minimize" else value > than


@dataclass(frozen=True, kw_only=True)
class Values:
    """A key's values, given."""

    options: tuple[Any, ...]

    def draw(self, seed: int) -> Any:
        """Return one of them, each as likely."""
        return random.Random(seed).choice(self.options)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A key's values, between two bounds that are among them."""

    low: float
    high: float
    log: bool = False  # as many in 1e-6 to 1e-5 as in 1e-5 to 1e-4

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers, as its bounds are."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, seed: int) -> float:
        """Return a number, with four significant digits."""
        share = random.Random(seed).random()
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + share * (high - low))
        elif self.whole:
            return int(self.low + math.floor(share * (self.high - self.low + 1)))
        else:
            value = self.low + share * (self.high - self.low)
        rounded = float(f"{value:.{_DIGITS}g}")
        kept = min(max(rounded, self.low), self.high)
        return round(kept) if self.whole else kept


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A study's search: the same budget for every arm, on `select` alone."""

    keys: Mapping[str, Values | Range]  # dotted keys of the recipe
    trials: int  # of an arm
    metric: SelectMetric
    seed: int  # of the draws and of every training of the search

    @property
    def combinations(self) -> int | None:
        """How many sets of values there are; None where a range gives no end of them."""
        sizes = [len(one.options) for one in self.keys.values() if isinstance(one, Values)]
        return math.prod(sizes) if len(sizes) == len(self.keys) else None

    def draws(self) -> tuple[dict[str, Any], ...]:
        """Return the sets of values that each arm is tried with, key -> value, in order.

        Of values alone: all combinations as they are written, or a seeded subset. With a range:
        each key by itself, seeded.
        """
        given = [one.options for one in self.keys.values() if isinstance(one, Values)]
        if len(given) == len(self.keys):
            grid = [
                dict(zip(self.keys, values, strict=True)) for values in itertools.product(*given)
            ]
            if self.trials >= len(grid):
                return tuple(grid)
            return tuple(sorted(grid, key=self._lot)[: self.trials])
        return tuple(
            {
                key: values.draw(derived_seed("tune", self.seed, key, number))
                for key, values in self.keys.items()
            }
            for number in range(self.trials)
        )

    def check(self, benchmarks: BenchmarksConfig, seeds: tuple[int, ...]) -> None:
        """Check that it chooses by nothing that is quoted; a study that does not is none.

        Raises:
            ConfigError: its metric is not of `select`, or it trains with a seed of the study's.
        """
        problems = [
            problem
            for problem in (metric_problem(self.metric, benchmarks), seed_problem(self.seed, seeds))
            if problem is not None
        ]
        if problems:
            raise ConfigError(problems)

    def _lot(self, values: Mapping[str, Any]) -> int:
        return derived_seed(
            "tune", self.seed, *(f"{key}={values[key]!r}" for key in sorted(values))
        )


def metric_problem(metric: SelectMetric, benchmarks: BenchmarksConfig) -> str | None:
    """Return what is wrong with what a search is judged by."""
    if metric.benchmark in {settings.name for settings in benchmarks.select}:
        return None
    return (
        f"tune.metric: '{metric.benchmark}' is not under `select`, and nothing else chooses: name "
        "a benchmark of `select`"
    )


def seed_problem(seed: int, seeds: tuple[int, ...]) -> str | None:
    """Return what is wrong with a search's seed."""
    if seed not in seeds:
        return None
    return (
        f"tune.seed: {seed} is one of the study's seeds: a training that was chosen for its own "
        "luck would be quoted: use another"
    )
