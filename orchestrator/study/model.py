"""Define a study: its question, recipe, factors, seeds and benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chip_core.config.trial import BenchmarksConfig
from orchestrator.study.early_stopping import EarlyStopping
from orchestrator.study.limits import Budget, Limits
from orchestrator.study.search_space import Tune

#: Factor -> level, for the factors that apply.
Cell = dict[str, str]
#: Factor -> levels: matches the cells that have one of the levels for each factor.
Pattern = Mapping[str, frozenset[str]]
#: Offset from a study's seed to its placebo's. The seeds of a study with a placebo are below it.
PLACEBO_SEED_OFFSET = 1_000_000
#: Which cells of the grid a study has: docs/study-files.md.
Design = Literal["grid", "one_at_a_time", "leave_one_out", "cells"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of a factor: its name and the dotted keys that it overrides."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One thing that a study varies, and its levels."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, kw_only=True)
class DeclaredMetric:
    """A primary or secondary metric, declared in the study file before anything runs."""

    metric: str
    goal: Literal["minimize", "maximize"]
    smallest_difference: float | None = None  # δ: smallest that matters, in the shown unit


@dataclass(frozen=True, kw_only=True)
class PublishedFigures:
    """Figures published by others: shown next to the study's, never mixed with them."""

    source: str
    arm: Mapping[str, str] | None  # the cell, factor -> level; None: the untrained model
    values: Mapping[str, float]  # by metric


@dataclass(frozen=True, kw_only=True)
class StudyChanges:
    """What the command line changes in a study file."""

    recipe: str | None = None
    seeds: Sequence[int] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked study."""

    name: str
    question: str
    recipe: str
    source: str
    base: Mapping[str, Any]  # the recipe's tree with the study's own overrides
    factors: tuple[Factor, ...]
    cells: tuple[Cell, ...]  # of the design, without excluded ones; never empty
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]  # one of the cells
    benchmarks: BenchmarksConfig
    primary: DeclaredMetric | None
    secondary: tuple[DeclaredMetric, ...] = ()
    exploratory: bool = False  # p-values bound the share of false findings
    published: tuple[PublishedFigures, ...] = ()
    design: Design = "grid"
    when: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)  # by conditional factor
    placebo: bool = False  # whether to add an arm that differs from the baseline only in its seeds
    excluded_count: int = 0  # cells of the design that `include` and `exclude` leave out
    tune: Tune | None = None  # search that each arm makes before its seeds run
    budget: Budget | None = None  # for what is still to run
    limits: Limits | None = None  # at which each run stops
    early_stopping: EarlyStopping | None = None  # of trainings that fall behind
    changes: StudyChanges = StudyChanges()  # of its file, by the command line

    def __post_init__(self) -> None:
        """Check that the search uses nothing that is reported.

        Raises:
            ConfigError: it does.
        """
        if self.tune is not None:
            self.tune.check(self.benchmarks, (*self.seeds, *self.placebo_seeds))

    @property
    def placebo_seeds(self) -> tuple[int, ...]:
        """The placebo's seeds, one for each seed of the study. Empty without a placebo."""
        return tuple(PLACEBO_SEED_OFFSET + seed for seed in self.seeds) if self.placebo else ()

    @property
    def scored_benchmarks(self) -> BenchmarksConfig:
        """The benchmarks that score the study's seeds: with `tune:`, only those of `report`."""
        return self.benchmarks if self.tune is None else self.benchmarks.report_only

    @property
    def declared_metrics(self) -> tuple[DeclaredMetric, ...]:
        """The metrics that get a verdict, the primary first."""
        return (() if self.primary is None else (self.primary,)) + self.secondary


def format_level(value: Any) -> str:
    """Return a level's value as the shortest text that YAML reads as the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list):
        return ",".join(format_level(entry) for entry in value)
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", _strip_exponent, repr(value).removesuffix(".0"))
    return str(value)


def _strip_exponent(match: re.Match[str]) -> str:
    return "e-" if match[1] == "-" else "e"


def matches(pattern: Pattern, cell: Mapping[str, str]) -> bool:
    """Return whether a cell has one of the pattern's levels for each of the pattern's factors."""
    return all(cell.get(name) in labels for name, labels in pattern.items())
