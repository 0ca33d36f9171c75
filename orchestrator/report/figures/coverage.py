"""Draw a hallucination metric, lower is better, against coverage, higher is better."""

from __future__ import annotations

from typing import Any

from orchestrator.report.figures.base import arm_style, render_figure, shorten_label
from orchestrator.report.formatting import group_metrics, metric_title, slugify
from orchestrator.report.layout import Picture
from orchestrator.report.summary import UNTRAINED, Summary

_MAX_LEGEND_ARMS = 24  # largest number of arms with a legend
#: The benchmarks' names for coverage: the share of the existing objects that an answer names.
_COVERAGE = ("cover", "recall", "object_recall")


def coverage_pairs(summary: Summary) -> list[tuple[str, str]]:
    """Return (coverage, minimized metric) for each benchmark with both.

    The primary metric is used if it is one of them, else the benchmark's first. Parts of a
    benchmark (`pope/random/…`) are left out: they are questions, whose recall is no coverage.
    """
    primary = summary.plan.study.primary
    pairs = []
    for benchmark, metrics in group_metrics(summary.metrics).items():
        if "/" in benchmark:  # a part, or under `select`
            continue
        ordered = sorted(metrics, key=lambda name: primary is None or name != primary.metric)
        high = [name for name in ordered if name.rpartition("/")[2] in _COVERAGE]
        low = [name for name in ordered if summary.metrics[name].goal == "minimize"]
        if high and low:
            pairs.append((high[0], low[0]))
    return pairs


def draw_coverage(summary: Summary, x_metric: str, y_metric: str) -> tuple[Picture, bytes] | None:
    """Draw every arm by two metrics of a benchmark; None if no arm has both."""
    rows = [row for row in summary.rows if x_metric in row.figures and y_metric in row.figures]
    if not rows:
        return None
    arms = [arm.name for arm in summary.plan.arms]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row in rows:
            x_figure, y_figure = row.figures[x_metric], row.figures[y_metric]
            if row.name == UNTRAINED:
                axes.plot(
                    x_figure.mean, y_figure.mean, "x", color="#222222", markersize=8, label=row.name
                )
                continue
            baseline = row.arm is not None and row.arm.baseline
            colour, marker = arm_style(arms.index(row.name), baseline=baseline)
            seeds = [seed for seed in x_figure.values if seed in y_figure.values]
            x_values = [x_figure.values[seed] for seed in seeds]
            y_values = [y_figure.values[seed] for seed in seeds]
            axes.plot(x_values, y_values, ".", color=colour, alpha=0.5, markersize=5)
            name = shorten_label(row.name) + (" (baseline)" if baseline else "")
            axes.plot(
                x_figure.mean,
                y_figure.mean,
                marker,
                color=colour,
                markersize=7,
                label=name,
                linestyle="",
            )
        axes.set_xlabel(metric_title(x_metric, summary.metrics[x_metric]))
        axes.set_ylabel(metric_title(y_metric, summary.metrics[y_metric]))
        if len(rows) <= _MAX_LEGEND_ARMS:
            figure.legend(loc="outside right upper")

    caption = (
        f"{y_metric} against {x_metric}: mean over seeds (large), each seed (small). Right and "
        "down is better in both; further left at the same height means that fewer of the objects "
        "in the image are named."
    )
    name = f"coverage-{slugify(y_metric)}-{slugify(x_metric.rpartition('/')[2])}"
    return render_figure(
        name, caption, draw, height=max(3.2, 0.5 + 0.17 * min(len(rows), _MAX_LEGEND_ARMS))
    )
