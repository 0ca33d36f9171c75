"""Choose the unit in which a metric is shown."""

from __future__ import annotations

from dataclasses import replace

from chip_core.evaluation.task import MetricInfo


def to_shown_unit(info: MetricInfo) -> MetricInfo:
    """Return a metric's info in the shown unit: fractions become percent."""
    return replace(info, unit="percent") if info.unit == "fraction" else info


def shown_unit_scale(info: MetricInfo) -> float:
    """Return the factor from the scorer's unit to the shown one: 100 for a fraction, else 1."""
    return 100.0 if info.unit == "fraction" else 1.0
