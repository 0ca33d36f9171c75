"""Figures that are ratios of sums over items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chip_core.evaluation.outcomes import ItemOutcome, MetricInfo, MetricOutcome
from chip_core.utils.errors import UserError

ItemsByMetric = Mapping[str, Sequence[ItemOutcome]]
MetricInfos = Mapping[str, MetricInfo]
Values = Mapping[str, float | None]


def make_outcome(
    item: str, numerator: float, denominator: float = 1.0, group: str = ""
) -> ItemOutcome:
    """Return an item's share of a metric; truth values count as 1 and 0."""
    return ItemOutcome(
        item=item, numerator=float(numerator), denominator=float(denominator), group=group
    )


def compute_rate(items: Sequence[ItemOutcome]) -> float | None:
    """Return Σ numerators / Σ denominators; None if there is nothing to divide by."""
    denominator = sum(outcome.denominator for outcome in items)
    return sum(outcome.numerator for outcome in items) / denominator if denominator else None


def compute_values(
    infos: MetricInfos, items: ItemsByMetric, digits: int | None = None
) -> dict[str, float | None]:
    """Return the ratio of each metric that has items, in its unit; None if it is undefined."""
    values: dict[str, float | None] = {}
    for name, outcomes in items.items():
        value = compute_rate(outcomes)
        if value is not None:
            value = value * 100 if infos[name].unit == "percent" else value
            value = value if digits is None else round(value, digits)
        values[name] = value
    return values


def compute_printed_values(
    infos: MetricInfos, items: ItemsByMetric, *, digits: int, scorer: str
) -> dict[str, float | None]:
    """Return the values as printed by a script that always divides.

    Raises:
        UserError: the script would divide by zero.
    """
    values = compute_values(infos, items, digits)
    for name, value in values.items():
        if value is None:
            raise UserError(
                f"{scorer}: {name} has nothing to count here: the official script divides by zero "
                "and stops; --protocol corrected gives the figures that are defined"
            )
    return values


def build_metrics(
    infos: MetricInfos, items: ItemsByMetric, values: Values | None = None
) -> tuple[MetricOutcome, ...]:
    """Return the metrics that have items, in order.

    Args:
        infos: the definition of each metric; `percent` is 100 times the ratio.
        items: each metric's items.
        values: the values that the official script prints, in place of the plain ratios.
    """
    if values is None:
        values = compute_values(infos, items)
    return tuple(
        infos[name].make_metric(name, values[name], outcomes) for name, outcomes in items.items()
    )
