"""What a scorer returns: a figure, and for every item what it contributed to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ItemOutcome:
    """One item's share of a metric: it adds to the metric's numerator and denominator."""

    item: str
    numerator: float
    denominator: float


@dataclass(frozen=True, kw_only=True)
class MetricOutcome:
    """One metric over a set of items.

    `value` is in `unit`; `goal` says which direction is better; `items` has one entry an item, in
    the order they were scored.
    """

    name: str
    unit: str
    goal: Literal["minimize", "maximize"]
    value: float
    items: tuple[ItemOutcome, ...]


def percent(
    name: str, goal: Literal["minimize", "maximize"], items: Iterable[ItemOutcome]
) -> MetricOutcome:
    """Return the metric 100 × Σ numerators / Σ denominators.

    Raises:
        ValueError: there is nothing to divide by; a rate over nothing is not 0.
    """
    kept = tuple(items)
    whole = sum(outcome.denominator for outcome in kept)
    if not whole:
        raise ValueError(f"{name} is undefined: its denominator over {len(kept)} items is empty")
    value = 100.0 * sum(outcome.numerator for outcome in kept) / whole
    return MetricOutcome(name=name, unit="percent", goal=goal, value=value, items=kept)
