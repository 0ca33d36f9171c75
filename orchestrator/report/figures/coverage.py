"""Draw a hallucination metric, lower is better, against coverage, higher is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.report.figures.base import drawn, label, style
from orchestrator.report.formatting import metric_groups, metric_title, slug
from orchestrator.report.layout import Picture
from orchestrator.report.summary import UNTRAINED, Summary

_LEGEND = 24  # largest number of arms with a legend
#: The benchmarks' names for coverage: the share of the existing objects that an answer names.
_COVERAGE = ("cover", "recall", "object_recall")


def pairs(summary: Summary) -> list[tuple[str, str]]:
    """Return (coverage, minimized metric) for each benchmark with both.

    The primary metric is used if it is one of them, else the benchmark's first. Parts of a
    benchmark (`pope/random/…`) are left out: they are questions, whose recall is no coverage.
    """
    primary = summary.plan.study.primary
    chosen = []
    for benchmark, metrics in metric_groups(summary.metrics).items():
        if "/" in benchmark:  # a part, or under `select`
            continue
        ordered = sorted(metrics, key=lambda name: primary is None or name != primary.metric)
        high = [name for name in ordered if name.rpartition("/")[2] in _COVERAGE]
        low = [name for name in ordered if summary.metrics[name].goal == "minimize"]
        if high and low:
            chosen.append((high[0], low[0]))
    return chosen


def draw_pair(summary: Summary, across: str, up: str) -> tuple[Picture, bytes] | None:
    """Draw every arm by two metrics of a benchmark; None if no arm has both."""
    rows = [row for row in summary.rows if across in row.figures and up in row.figures]
    if not rows:
        return None
    arms = [arm.name for arm in summary.plan.arms]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row in rows:
            one, other = row.figures[across], row.figures[up]
            if row.name == UNTRAINED:
                axes.plot(one.mean, other.mean, "x", color="#222222", markersize=8, label=row.name)
                continue
            baseline = row.arm is not None and row.arm.baseline
            colour, marker = style(arms.index(row.name), baseline=baseline)
            seeds = [seed for seed in one.values if seed in other.values]
            _seeds(axes, [one.values[seed] for seed in seeds],
                   [other.values[seed] for seed in seeds], colour)  # fmt: skip
            name = label(row.name) + (" (baseline)" if baseline else "")
            axes.plot(
                one.mean, other.mean, marker, color=colour, markersize=7, label=name, linestyle=""
            )
        axes.set_xlabel(metric_title(across, summary.metrics[across]))
        axes.set_ylabel(metric_title(up, summary.metrics[up]))
        if len(rows) <= _LEGEND:
            figure.legend(loc="outside right upper")

    caption = (
        f"{up} against {across}: mean over seeds (large), each seed (small). Right and down is "
        "better in both; further left at the same height says less of what is there."
    )
    name = f"coverage-{slug(up)}-{slug(across.rpartition('/')[2])}"
    return drawn(name, caption, draw, height=max(3.2, 0.5 + 0.17 * min(len(rows), _LEGEND)))


def _seeds(axes: Any, across: Sequence[float], up: Sequence[float], colour: str) -> None:
    axes.plot(across, up, ".", color=colour, alpha=0.5, markersize=5)
