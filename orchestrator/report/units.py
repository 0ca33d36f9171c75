"""Choose the unit that a metric is shown in."""

from __future__ import annotations

from dataclasses import replace

from chip_core.evaluation.task import MetricInfo


def shown(info: MetricInfo) -> MetricInfo:
    """Return a metric as a report shows it: one that is printed as a fraction, in percent."""
    return replace(info, unit="percent") if info.unit == "fraction" else info


def shown_scale(info: MetricInfo) -> float:
    """Return what a scorer's figure is multiplied with to be shown: 100 for a fraction, else 1."""
    return 100.0 if info.unit == "fraction" else 1.0
