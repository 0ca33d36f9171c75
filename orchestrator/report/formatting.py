"""Format figures for people, the same way everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from chip_core.evaluation.task import MetricInfo
from orchestrator.analysis import Comparison, Verdict
from orchestrator.report.summary import ArmRow, Figure, Summary

NOTHING = "—"
_MINUS = "\N{MINUS SIGN}"
_UNITS = {"percent": "%"}
_LONGEST_TITLE = 40  # characters
_SHOWN_NAMES = 8  # of a list in a sentence; the rest is counted

#: What a flag beside a verdict stands for.
FLAGS = {
    "†": "these cells scatter more between seeds than the others: their own scatter is used",
    "‡": "a cell has one seed: its seed variance is borrowed from the others",
}


def plain(value: float) -> str:
    """Return a figure with two decimals."""
    return f"{value:.2f}".replace("-", _MINUS)


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.2f}".replace("-", _MINUS)


def mean_text(figure: Figure | None) -> str:
    """Return `mean ± sd`; a dash where nothing is there."""
    if figure is None:
        return NOTHING
    return plain(figure.mean) + ("" if figure.sd is None else f" ± {plain(figure.sd)}")


def difference_text(figure: Figure | None) -> str:
    """Return a difference and its interval; empty where there is none."""
    if figure is None or figure.difference is None:
        return ""
    if figure.interval is None:
        return signed(figure.difference)
    return f"{signed(figure.difference)} {interval_text(figure.interval)}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """Return `[low, high]`; a dash where there is none."""
    if interval is None:
        return NOTHING
    low, high = interval
    return f"[{plain(low)}, {plain(high)}]"


def p_text(p: float | None) -> str:
    """Return a p-value with as many digits as it is good for."""
    if p is None:
        return NOTHING
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def flags(comparison: Comparison) -> str:
    """Return the flags of a comparison, as in `FLAGS`."""
    found = comparison.contrast
    if found is None:
        return ""
    return ("†" if found.guard else "") + ("‡" if found.borrowed else "")


def verdict_text(comparison: Comparison | None) -> str:
    """Return a verdict in its words, with its flags; empty where there is nothing to judge."""
    if comparison is None:
        return ""
    return " ".join(part for part in (verdict_words(comparison), flags(comparison)) if part)


def verdict_words(comparison: Comparison) -> str:
    """Return a verdict in its words; a placebo's that would have been an effect says so."""
    said = comparison.verdict.value
    return f"false positive: {said}" if is_false_find(comparison) else said


def is_false_find(comparison: Comparison | None) -> bool:
    """Return whether a placebo would have been called an effect: its interval leaves out 0."""
    if comparison is None or not comparison.placebo or comparison.contrast is None:
        return False
    interval = comparison.contrast.interval
    return interval is not None and not interval[0] <= 0 <= interval[1]


def is_bold(comparison: Comparison | None) -> bool:
    """Return whether a figure may be set bold: it is better than the baseline, and clearly."""
    return (
        comparison is not None and not comparison.placebo and comparison.verdict is Verdict.BETTER
    )


def unit_text(info: MetricInfo) -> str:
    """Return a metric's unit as it stands after a figure."""
    return _UNITS.get(info.unit, info.unit)


def points_text(info: MetricInfo) -> str:
    """Return the unit of a difference."""
    return "points" if info.unit == "percent" else info.unit


def arrow(info: MetricInfo) -> str:
    """Return which way is better."""
    return "↓" if info.goal == "minimize" else "↑"


def metric_title(metric: str, info: MetricInfo) -> str:
    """Return a metric's heading: its name, unit and better direction."""
    return f"{metric} {unit_text(info)} {arrow(info)}"


def seeds_text(row: ArmRow) -> str:
    """Return how many seeds an arm has, of how many."""
    done = sum(state == "done" for state in row.states.values())
    if row.arm is None:
        return NOTHING if done else "missing"
    return str(done) if done == len(row.states) else f"{done} of {len(row.states)}"


def row_name(row: ArmRow) -> str:
    """Return an arm's name as the first column has it."""
    if row.arm is not None and row.arm.placebo:
        return f"{row.name} (baseline, other seeds)"
    return row.name + (" (baseline)" if row.arm is not None and row.arm.baseline else "")


def baseline_text(summary: Summary) -> str:
    """Return the baseline by its levels: `objective = dpo, vision_encoder = frozen`."""
    baseline = summary.plan.study.baseline
    return ", ".join(f"{factor} = {level}" for factor, level in baseline.items())


def arms_title(summary: Summary) -> str:
    """Return what the names of arms are made of, as the heading of their column."""
    title = ", ".join(factor.name for factor in summary.plan.study.factors)
    return title if len(title) <= _LONGEST_TITLE else "arm"


def correction(summary: Summary) -> str:
    """Return by whose method p-values are corrected."""
    return "Benjamini–Hochberg" if summary.plan.study.exploratory else "Holm"


def listed(names: Sequence[str]) -> str:
    """Return `a, b and c`; names beyond the first few are counted.

    Where names have commas themselves they are kept apart by semicolons.
    """
    shown = list(names[:_SHOWN_NAMES])
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    if len(shown) < 2:
        return "".join(shown)
    between = "; " if any("," in name for name in shown) else ", "
    return f"{between.join(shown[:-1])} and {shown[-1]}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return `1 item`, `1,000 items`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def slug(name: str) -> str:
    """Return a name as a file's name has it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)


def metric_groups(metrics: Mapping[str, MetricInfo]) -> dict[str, list[str]]:
    """Return benchmark, or part of one -> its metrics, in order; tuned on it is `select/NAME`."""
    groups: dict[str, list[str]] = {}
    for metric in metrics:
        groups.setdefault(metric.rpartition("/")[0], []).append(metric)
    return groups
