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

#: Factor -> level, of the factors that apply.
Cell = dict[str, str]
#: Factor -> levels: matches the cells that have one of them in each.
Pattern = Mapping[str, frozenset[str]]
#: A placebo's seed beside a study's seed s is s + this; a study with one has seeds below it.
PLACEBO_SEEDS = 1_000_000
#: Which cells of the grid there are: docs/study-files.md.
Design = Literal["grid", "one_at_a_time", "leave_one_out", "cells"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of a factor: its name and the dotted overrides it stands for."""

    name: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """What is varied."""

    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True, kw_only=True)
class DeclaredMetric:
    """A metric that the study is about, as its file says before anything runs."""

    metric: str
    goal: Literal["minimize", "maximize"]
    smallest_difference: float | None = None  # that matters, in the metric's shown unit: δ


@dataclass(frozen=True, kw_only=True)
class PublishedFigures:
    """Figures that somebody else published: shown beside the study's, never mixed in."""

    source: str
    arm: Mapping[str, str] | None  # the cell, factor -> level; None: the untrained model
    values: Mapping[str, float]  # by metric


@dataclass(frozen=True, kw_only=True)
class StudyChanges:
    """What the command line changes of a study file."""

    recipe: str | None = None
    seeds: Sequence[int] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, checked."""

    name: str
    question: str
    recipe: str
    source: str
    base: Mapping[str, Any]  # the recipe's tree with the study's own overrides
    factors: tuple[Factor, ...]
    cells: tuple[Cell, ...]  # by the design, without what is excluded; never empty
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]  # one of the cells
    benchmarks: BenchmarksConfig
    primary: DeclaredMetric | None
    secondary: tuple[DeclaredMetric, ...] = ()
    exploratory: bool = False  # a search for what may be there: false findings are bounded by share
    published: tuple[PublishedFigures, ...] = ()
    design: Design = "grid"
    when: Mapping[str, tuple[Pattern, ...]] = field(default_factory=dict)  # by conditional factor
    placebo: bool = False  # an arm equal to the baseline but for its seeds
    left_out: int = 0  # cells of the design that `include` and `exclude` leave out
    tune: Tune | None = None  # what every arm chooses for itself before its seeds run
    budget: Budget | None = None  # of what is still to be run
    limits: Limits | None = None  # where each run of it stops
    early_stopping: EarlyStopping | None = None  # of trainings that fall behind
    changes: StudyChanges = StudyChanges()  # of its file, by the command line

    def __post_init__(self) -> None:
        """Check that nothing quoted chooses.

        Raises:
            ConfigError: it does.
        """
        if self.tune is not None:
            self.tune.check(self.benchmarks, (*self.seeds, *self.placebo_seeds))

    @property
    def placebo_seeds(self) -> tuple[int, ...]:
        """The placebo's seeds, one beside each of the study's; empty without one."""
        return tuple(PLACEBO_SEEDS + seed for seed in self.seeds) if self.placebo else ()

    @property
    def scored(self) -> BenchmarksConfig:
        """What the trials of its seeds are asked: under a search, what is quoted alone."""
        return self.benchmarks if self.tune is None else self.benchmarks.reporting

    @property
    def declared(self) -> tuple[DeclaredMetric, ...]:
        """The metrics that get a verdict, the primary first."""
        return (() if self.primary is None else (self.primary,)) + self.secondary


def level_text(value: Any) -> str:
    """Return a level's value as text: the shortest that YAML reads as the same value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list):
        return ",".join(level_text(entry) for entry in value)
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", _exponent, repr(value).removesuffix(".0"))
    return str(value)


def _exponent(found: re.Match[str]) -> str:
    return "e-" if found[1] == "-" else "e"


def matches(pattern: Pattern, cell: Mapping[str, str]) -> bool:
    """Return whether a cell has one of the pattern's levels in each of its factors."""
    return all(cell.get(name) in labels for name, labels in pattern.items())
