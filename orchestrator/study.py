"""What a study is: a question, a recipe, factors, seeds, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chip_core.config import BenchmarksConfig
from orchestrator.study_budget import Budget


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
class Declared:
    """A metric that the study is about, as its file says before anything runs."""

    metric: str
    goal: Literal["minimize", "maximize"]
    smallest_difference: float | None = None  # that matters, in the metric's shown unit: δ


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures that somebody else published: shown beside the study's, never mixed in."""

    source: str
    arm: Mapping[str, str] | None  # the cell, factor -> level; None: the untrained model
    values: Mapping[str, float]  # by metric


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, checked."""

    name: str
    question: str
    recipe: str
    source: str
    base: Mapping[str, Any]  # the recipe's tree with the study's own overrides
    factors: tuple[Factor, ...]
    exclude: tuple[Mapping[str, frozenset[str]], ...]
    seeds: tuple[int, ...]
    baseline: Mapping[str, str]  # factor -> level
    benchmarks: BenchmarksConfig
    primary: Declared | None
    secondary: tuple[Declared, ...] = ()
    exploratory: bool = False  # a search for what may be there: false findings are bounded by share
    published: tuple[Published, ...] = ()
    budget: Budget | None = None  # of what is still to be run

    @property
    def declared(self) -> tuple[Declared, ...]:
        """The metrics that get a verdict, the primary first."""
        return (() if self.primary is None else (self.primary,)) + self.secondary


def level_text(value: Any) -> str:
    """Return a level's value as text: what YAML would show for it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list):
        return ",".join(level_text(entry) for entry in value)
    return format(value, "g") if isinstance(value, float) else str(value)


def excludes(pattern: Mapping[str, frozenset[str]], cell: Mapping[str, str]) -> bool:
    """Return whether a pattern of factor -> levels matches a cell."""
    return all(cell.get(name) in labels for name, labels in pattern.items())
