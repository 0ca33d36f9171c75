"""Format figures as text, the same way in every output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chip_core.evaluation.task import MetricInfo
from orchestrator.analysis import Comparison, Verdict
from orchestrator.report.summary import ArmMetric, ArmRow, Summary

NO_VALUE = "—"
_MINUS = "\N{MINUS SIGN}"
_UNITS = {"percent": "%"}
_MAX_TITLE_LENGTH = 40  # characters
_MAX_NAMES = 8  # names of a list in a sentence; the rest is counted

#: The meaning of each flag next to a verdict.
FLAG_MEANINGS = {
    "†": "these cells scatter more between seeds than the others: their own scatter is used",
    "‡": "a cell has one seed: its seed variance is borrowed from the others",
}


def format_number(value: float) -> str:
    """Format a figure with two decimals."""
    return f"{value:.2f}".replace("-", _MINUS)


def format_signed(value: float) -> str:
    """Format a difference with two decimals and its sign."""
    return f"{value:+.2f}".replace("-", _MINUS)


def format_mean(arm_metric: ArmMetric | None) -> str:
    """Format `mean ± sd`, or a dash without a value."""
    if arm_metric is None:
        return NO_VALUE
    return format_number(arm_metric.mean) + (
        "" if arm_metric.sd is None else f" ± {format_number(arm_metric.sd)}"
    )


def format_difference(arm_metric: ArmMetric | None) -> str:
    """Format a difference and its interval; empty without a difference."""
    if arm_metric is None or arm_metric.difference is None:
        return ""
    if arm_metric.interval is None:
        return format_signed(arm_metric.difference)
    return f"{format_signed(arm_metric.difference)} {format_interval(arm_metric.interval)}"


def format_interval(interval: tuple[float, float] | None) -> str:
    """Format `[low, high]`, or a dash without an interval."""
    if interval is None:
        return NO_VALUE
    low, high = interval
    return f"[{format_number(low)}, {format_number(high)}]"


def format_p_value(p: float | None) -> str:
    """Format a p-value with two or three decimals, or `< 0.001`."""
    if p is None:
        return NO_VALUE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def format_flags(comparison: Comparison) -> str:
    """Return the flags of a comparison (see `FLAG_MEANINGS`)."""
    contrast = comparison.contrast
    if contrast is None:
        return ""
    return ("†" if contrast.guard else "") + ("‡" if contrast.borrowed else "")


def format_verdict(comparison: Comparison | None) -> str:
    """Return a verdict in words with its flags; empty without a comparison."""
    if comparison is None:
        return ""
    return " ".join(part for part in (verdict_label(comparison), format_flags(comparison)) if part)


def verdict_label(comparison: Comparison) -> str:
    """Return a verdict in words, marked as a false positive if a placebo has an effect."""
    label = comparison.verdict.value
    return f"false positive: {label}" if is_false_positive(comparison) else label


def is_false_positive(comparison: Comparison | None) -> bool:
    """Return whether this is a placebo whose interval excludes 0, a false positive."""
    if comparison is None or not comparison.placebo or comparison.contrast is None:
        return False
    interval = comparison.contrast.interval
    return interval is not None and not interval[0] <= 0 <= interval[1]


def is_bold(comparison: Comparison | None) -> bool:
    """Return whether a figure is set in bold: its verdict is "better" and it is not a placebo."""
    return (
        comparison is not None and not comparison.placebo and comparison.verdict is Verdict.BETTER
    )


def format_unit(info: MetricInfo) -> str:
    """Return a metric's unit as written after a figure."""
    return _UNITS.get(info.unit, info.unit)


def format_difference_unit(info: MetricInfo) -> str:
    """Return the unit of a difference."""
    return "points" if info.unit == "percent" else info.unit


def direction_arrow(info: MetricInfo) -> str:
    """Return an arrow in the direction that is better."""
    return "↓" if info.goal == "minimize" else "↑"


def metric_title(metric: str, info: MetricInfo) -> str:
    """Return a metric's heading: name, unit and better direction."""
    return f"{metric} {format_unit(info)} {direction_arrow(info)}"


def format_seeds(row: ArmRow) -> str:
    """Return how many of an arm's seeds are done."""
    done = sum(state == "done" for state in row.states.values())
    if row.arm is None:
        return NO_VALUE if done else "missing"
    return str(done) if done == len(row.states) else f"{done} of {len(row.states)}"


def row_label(row: ArmRow) -> str:
    """Return an arm's name for the first column of a table."""
    if row.arm is not None and row.arm.placebo:
        return f"{row.name} (baseline, other seeds)"
    return row.name + (" (baseline)" if row.arm is not None and row.arm.baseline else "")


def format_baseline(summary: Summary) -> str:
    """Return the baseline's levels: `objective = dpo, vision_encoder = frozen`."""
    baseline = summary.plan.study.baseline
    return ", ".join(f"{factor} = {level}" for factor, level in baseline.items())


def arms_title(summary: Summary) -> str:
    """Return the heading of the column of arms: the factors' names, or `arm` if too long."""
    title = ", ".join(factor.name for factor in summary.plan.study.factors)
    return title if len(title) <= _MAX_TITLE_LENGTH else "arm"


def correction_name(summary: Summary) -> str:
    """Return the name of the method that corrects p-values."""
    return "Benjamini–Hochberg" if summary.plan.study.exploratory else "Holm"


def join_names(names: Sequence[str]) -> str:
    """Format names as `a, b and c`. Names beyond the first few are counted.

    If a name has a comma, the separator is a semicolon.
    """
    shown = list(names[:_MAX_NAMES])
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    if len(shown) < 2:
        return "".join(shown)
    separator = "; " if any("," in name for name in shown) else ", "
    return f"{separator.join(shown[:-1])} and {shown[-1]}"


def format_count(count: int, singular: str, plural: str | None = None) -> str:
    """Format a count with its noun: `1 item`, `1,000 items`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def slugify(name: str) -> str:
    """Make a name valid in file names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def group_metrics(metrics: Mapping[str, MetricInfo]) -> dict[str, list[str]]:
    """Group metrics by benchmark or part of one, in order; under `select` it is `select/NAME`."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(metric.rpartition("/")[0], []).append(metric)
    return groups
