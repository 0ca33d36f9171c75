"""Figures from items: a metric is the ratio of two sums unless its official script has it else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chip_core.evaluation.outcomes import ItemOutcome, MetricOutcome
from chip_core.evaluation.task import MetricInfo


def ratio(items: Iterable[ItemOutcome], scale: float = 1.0) -> float | None:
    """Return scale × Σ numerators / Σ denominators; None where there is nothing to divide by."""
    kept = list(items)
    whole = sum(outcome.denominator for outcome in kept)
    return scale * sum(outcome.numerator for outcome in kept) / whole if whole else None


def metrics(
    infos: Mapping[str, MetricInfo],
    items: Mapping[str, Iterable[ItemOutcome]],
    official: Mapping[str, float | None] | None = None,
) -> tuple[MetricOutcome, ...]:
    """Return the metrics of a benchmark.

    Args:
        infos: what each metric is; `percent` is 100 times the ratio.
        items: each metric's items.
        official: what the official script prints, in place of the plain ratios.
    """
    found = []
    for name, outcomes in items.items():
        info, kept = infos[name], tuple(outcomes)
        if official is not None:
            value = official[name]
        else:
            value = ratio(kept, 100.0 if info.unit == "percent" else 1.0)
        found.append(
            MetricOutcome(name=name, unit=info.unit, goal=info.goal, value=value, items=kept)
        )
    return tuple(found)


def outcome(item: str, numerator: float, denominator: float = 1.0, group: str = "") -> ItemOutcome:
    """Return an item's share of a metric."""
    return ItemOutcome(
        item=item, numerator=float(numerator), denominator=float(denominator), group=group
    )
