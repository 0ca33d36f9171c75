"""Figures that are ratios of sums over items."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from chip_core.evaluation.outcomes import ItemOutcome, MetricOutcome
from chip_core.evaluation.task import MetricInfo
from chip_core.utils.errors import UserError

Items = Mapping[str, Sequence[ItemOutcome]]
Infos = Mapping[str, MetricInfo]


def rate(items: Sequence[ItemOutcome]) -> float | None:
    """Return Σ numerators / Σ denominators; None if there is nothing to divide by."""
    whole = sum(outcome.denominator for outcome in items)
    return sum(outcome.numerator for outcome in items) / whole if whole else None


def plain(infos: Infos, items: Items) -> tuple[MetricOutcome, ...]:
    """Return every metric, unrounded; undefined if there is nothing to divide by."""
    return _metrics(infos, items, digits=None)


def as_printed(infos: Infos, items: Items, *, digits: int, who: str) -> tuple[MetricOutcome, ...]:
    """Return every metric as printed by a script that always divides.

    Raises:
        UserError: the script would divide by zero.
    """
    for name in infos:
        if rate(items[name]) is None:
            raise UserError(
                f"{who}: {name} is of nothing here: the official script divides by zero and stops; "
                "--protocol corrected gives what is defined"
            )
    return _metrics(infos, items, digits=digits)


def outcome(item: str, numerator: float, denominator: float = 1.0, group: str = "") -> ItemOutcome:
    """Return an item's share of a metric; truth values count as 1 and 0."""
    return ItemOutcome(
        item=item, numerator=float(numerator), denominator=float(denominator), group=group
    )


def _metrics(infos: Infos, items: Items, digits: int | None) -> tuple[MetricOutcome, ...]:
    found = []
    for name, info in infos.items():
        value = rate(items[name])
        if value is not None:
            value = value * 100 if info.unit == "percent" else value
            value = value if digits is None else round(value, digits)
        found.append(
            MetricOutcome(
                name=name, unit=info.unit, goal=info.goal, value=value, items=tuple(items[name])
            )
        )
    return tuple(found)


def ratio(items: Iterable[ItemOutcome], scale: float = 1.0) -> float | None:
    """Return scale × Σ numerators / Σ denominators; None if there is nothing to divide by."""
    found = rate(tuple(items))
    return None if found is None else scale * found


def metrics(
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
    kept = {name: tuple(outcomes) for name, outcomes in items.items()}
    if official is None:
        return plain({name: infos[name] for name in kept}, kept)
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
