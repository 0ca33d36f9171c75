"""Figures of scorers whose official values are counted by a script's own order of operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chip_core.evaluation.outcomes import ItemOutcome, MetricOutcome
from chip_core.evaluation.scorers import ratios
from chip_core.evaluation.task import MetricInfo


def ratio(items: Iterable[ItemOutcome], scale: float = 1.0) -> float | None:
    """Return scale × Σ numerators / Σ denominators; None where there is nothing to divide by."""
    found = ratios.rate(tuple(items))
    return None if found is None else scale * found


def metrics(
    infos: Mapping[str, MetricInfo],
    items: Mapping[str, Iterable[ItemOutcome]],
    official: Mapping[str, float | None] | None = None,
) -> tuple[MetricOutcome, ...]:
    """Return the metrics that have items, in their order.

    Args:
        infos: what each metric is; `percent` is 100 times the ratio.
        items: each metric's items.
        official: what the official script prints, in place of the plain ratios.
    """
    kept = {name: tuple(outcomes) for name, outcomes in items.items()}
    if official is None:
        return ratios.plain({name: infos[name] for name in kept}, kept)
    return tuple(
        MetricOutcome(
            name=name,
            unit=infos[name].unit,
            goal=infos[name].goal,
            value=official[name],
            items=outcomes,
        )
        for name, outcomes in kept.items()
    )


def outcome(item: str, numerator: float, denominator: float = 1.0, group: str = "") -> ItemOutcome:
    """Return an item's share of a metric; it weighs 1 unless said otherwise."""
    return ratios.outcome(item, numerator, denominator, group)
