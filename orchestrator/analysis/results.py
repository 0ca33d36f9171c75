"""Describe a study's results, the input of the analysis.

S_c seeds of arm c, N units (items, or clusters of items that are not independent).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from chip_core.utils.registry import suggest
from orchestrator.analysis.values import Array, pseudo_values


@dataclass(frozen=True, kw_only=True)
class StudyArm:
    """A row of the report: one cell, or the cells that are one trial."""

    name: str
    cells: tuple[Mapping[str, str], ...]  # factor -> level of each of its cells; may be empty
    seeds: tuple[int, ...]  # ascending; those with scores
    collapsed: bool = False  # its training collapsed: its seed variance is not shared
    placebo: bool = False  # the baseline with other seeds, in its own comparison only


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricResults:
    """One metric of every arm, in the arms' order.

    It has item outcomes or, if a benchmark has none, the seeds' figures. A unit that any arm lacks
    has been left out of all.
    """

    goal: Literal["minimize", "maximize"]
    numerators: tuple[Array, ...] | None = None  # (S_c, N) of each arm; or the units' scores
    denominators: tuple[Array, ...] | None = None  # (S_c, N); None: a mean of scores
    figures: tuple[Array, ...] | None = None  # (S_c,) of each arm, if there are no items
    scale: float = 1.0  # from numerator/denominator to the shown unit: 100 for percent
    smallest_difference: float | None = None  # that matters, in the shown unit

    @cached_property
    def values(self) -> tuple[Array, ...]:
        """Values (S_c, N) of each arm, in the shown unit; N = 1 without items.

        Raises:
            ValueError: as `pseudo_values`, or not exactly one of items and figures is given.
        """
        if (self.numerators is None) == (self.figures is None):
            raise ValueError("give either item outcomes or figures")
        if self.figures is not None:
            return tuple(np.asarray(row, dtype=np.float64)[:, None] for row in self.figures)
        assert self.numerators is not None
        denominators = self.denominators or (None,) * len(self.numerators)
        pairs = zip(self.numerators, denominators, strict=True)
        return tuple(self.scale * pseudo_values(num, den) for num, den in pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyResults:
    """The scores of a study's arms, without the untrained model.

    Raises:
        ValueError: no arm is the baseline, a cell is in two arms, an arm's seeds are not ascending,
            or a metric does not have one row for each seed of each arm.
    """

    arms: tuple[StudyArm, ...]
    baseline: Mapping[str, str]  # factor -> level
    metrics: Mapping[str, MetricResults]
    common_random_numbers: bool = True  # a seed draws the same numbers in every arm
    exploratory: bool = False

    def __post_init__(self) -> None:
        cells = [frozenset(cell.items()) for arm in self.arms for cell in arm.cells]
        if len(set(cells)) < len(cells):
            raise ValueError("a cell is in two arms: cells that are one trial are one arm")
        if frozenset(self.baseline.items()) not in cells:
            raise ValueError(f"the baseline {dict(self.baseline)} is not a cell of any arm")
        for arm in self.arms:
            if list(arm.seeds) != sorted(set(arm.seeds)) or not arm.seeds:
                raise ValueError(f"{arm.name}: seeds {arm.seeds} are not ascending and distinct")
        for name, metric in self.metrics.items():
            rows = [len(values) for values in metric.values]
            if rows != [len(arm.seeds) for arm in self.arms]:
                raise ValueError(f"{name}: rows {rows} do not fit the arms' seeds")

    @property
    def baseline_arm(self) -> int:
        """Index of the baseline among the arms."""
        return self.arm_by_cell[frozenset(self.baseline.items())]

    @cached_property
    def arm_by_cell(self) -> Mapping[frozenset[tuple[str, str]], int]:
        """Cell (its items) -> index of its arm."""
        return {
            frozenset(cell.items()): index
            for index, arm in enumerate(self.arms)
            for cell in arm.cells
        }

    @cached_property
    def factors(self) -> Mapping[str, tuple[str, ...]]:
        """Factor -> its levels, the baseline's first, then in order of appearance."""
        levels: dict[str, dict[str, None]] = {}
        for factor, level in self.baseline.items():
            levels[factor] = {level: None}
        for arm in self.arms:
            for cell in arm.cells:
                for factor, level in cell.items():
                    levels.setdefault(factor, {})[level] = None
        return {factor: tuple(names) for factor, names in levels.items()}

    def metric(self, name: str) -> MetricResults:
        """Return a metric's results.

        Raises:
            ValueError: there is no such metric. The message suggests similar names.
        """
        if name not in self.metrics:
            raise ValueError(f"unknown metric '{name}': {suggest(name, self.metrics)}")
        return self.metrics[name]
