"""The result of a scorer: figures, and each item's contribution to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ItemOutcome:
    """One item's share of a metric: it adds to the metric's numerator and denominator.

    `group` is the part of the benchmark that the item belongs to (AMBER's `attribute/state`, a
    category, a split); empty if there is one part.
    """

    item: str
    numerator: float
    denominator: float
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricOutcome:
    """One metric over a set of items.

    `value` is in `unit`, or None if it is undefined; `goal` is the better direction; `items` has
    one entry per item, in the order in which they were scored.
    """

    name: str
    unit: str
    goal: Literal["minimize", "maximize"]
    value: float | None
    items: tuple[ItemOutcome, ...]


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """The unit and the better direction of a metric."""

    unit: str
    goal: Literal["minimize", "maximize"]

    def make_metric(
        self, name: str, value: float | None, items: Iterable[ItemOutcome]
    ) -> MetricOutcome:
        """Return the metric with its value and items."""
        return MetricOutcome(
            name=name, unit=self.unit, goal=self.goal, value=value, items=tuple(items)
        )


def compute_percentage(items: Sequence[ItemOutcome]) -> float | None:
    """Return 100 × Σ numerators / Σ denominators; None if there is nothing to divide by."""
    denominator = sum(outcome.denominator for outcome in items)
    return (
        100.0 * sum(outcome.numerator for outcome in items) / denominator if denominator else None
    )


def percent(
    name: str, goal: Literal["minimize", "maximize"], items: Iterable[ItemOutcome]
) -> MetricOutcome:
    """Return the metric 100 × Σ numerators / Σ denominators.

    It is undefined if there is nothing to divide by: a rate over nothing is not 0.

    Raises:
        ValueError: there are no items at all.
    """
    outcomes = tuple(items)
    if not outcomes:
        raise ValueError(f"{name}: there are no items to score")
    info = MetricInfo(unit="percent", goal=goal)
    return info.make_metric(name, compute_percentage(outcomes), outcomes)
