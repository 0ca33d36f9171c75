"""Figures that are ratios of sums over items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from chip_core.evaluation.outcomes import ItemOutcome, MetricOutcome
from chip_core.evaluation.task import MetricInfo
from chip_core.utils.errors import UserError

ItemsByMetric = Mapping[str, Sequence[ItemOutcome]]
MetricInfos = Mapping[str, MetricInfo]


def compute_rate(items: Sequence[ItemOutcome]) -> float | None:
    """Return Σ numerators / Σ denominators; None if there is nothing to divide by."""
    denominator = sum(outcome.denominator for outcome in items)
    return sum(outcome.numerator for outcome in items) / denominator if denominator else None


def compute_metrics(infos: MetricInfos, items: ItemsByMetric) -> tuple[MetricOutcome, ...]:
    """Return every metric, unrounded; undefined if there is nothing to divide by."""
    return _compute(infos, items, digits=None)


def compute_printed_metrics(
    infos: MetricInfos, items: ItemsByMetric, *, digits: int, scorer: str
) -> tuple[MetricOutcome, ...]:
    """Return every metric as printed by a script that always divides.

    Raises:
        UserError: the script would divide by zero.
    """
    for name in infos:
        if compute_rate(items[name]) is None:
            raise UserError(
                f"{scorer}: {name} has nothing to count here: the official script divides by zero "
                "and stops; --protocol corrected gives the figures that are defined"
            )
    return _compute(infos, items, digits=digits)


def make_outcome(
    item: str, numerator: float, denominator: float = 1.0, group: str = ""
) -> ItemOutcome:
    """Return an item's share of a metric; truth values count as 1 and 0."""
    return ItemOutcome(
        item=item, numerator=float(numerator), denominator=float(denominator), group=group
    )


def _compute(
    infos: MetricInfos, items: ItemsByMetric, digits: int | None
) -> tuple[MetricOutcome, ...]:
    outcomes = []
    for name, info in infos.items():
        value = compute_rate(items[name])
        if value is not None:
            value = value * 100 if info.unit == "percent" else value
            value = value if digits is None else round(value, digits)
        outcomes.append(
            MetricOutcome(
                name=name, unit=info.unit, goal=info.goal, value=value, items=tuple(items[name])
            )
        )
    return tuple(outcomes)


def compute_ratio(items: Iterable[ItemOutcome], scale: float = 1.0) -> float | None:
    """Return scale × Σ numerators / Σ denominators; None if there is nothing to divide by."""
    unscaled = compute_rate(tuple(items))
    return None if unscaled is None else scale * unscaled


def build_metrics(
    infos: Mapping[str, MetricInfo],
    items: Mapping[str, Iterable[ItemOutcome]],
    official: Mapping[str, float | None] | None = None,
) -> tuple[MetricOutcome, ...]:
    """Return the metrics that have items, in order.

    Args:
        infos: the definition of each metric; `percent` is 100 times the ratio.
        items: each metric's items.
        official: the values that the official script prints, in place of the plain ratios.
    """
    outcomes_by_metric = {name: tuple(outcomes) for name, outcomes in items.items()}
    if official is None:
        return compute_metrics(
            {name: infos[name] for name in outcomes_by_metric}, outcomes_by_metric
        )
    return tuple(
        MetricOutcome(
            name=name,
            unit=infos[name].unit,
            goal=infos[name].goal,
            value=official[name],
            items=outcomes,
        )
        for name, outcomes in outcomes_by_metric.items()
    )
