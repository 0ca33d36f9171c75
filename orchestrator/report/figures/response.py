"""Draw response curves: a metric along a factor with numeric levels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.figures.base import (
    BASELINE_COLOUR,
    COLOURS,
    render_figure,
    scale_axis,
    shorten_label,
)
from orchestrator.report.formatting import format_baseline, metric_title
from orchestrator.report.layout import Picture
from orchestrator.report.summary import ArmMetric, Summary
from orchestrator.study.model import Factor

MIN_LEVELS = 3  # levels of a curve
MAX_PANELS = 3
_PANEL_HEIGHT = 2.6  # inches of height
_MAX_CURVES = 10


@dataclass(frozen=True, kw_only=True)
class ResponseCurve:
    """A curve over the levels of one factor, for one combination of the others."""

    others: str  # the other factors' levels; may be empty
    points: Sequence[tuple[float, ArmMetric]]


def numeric_factors(summary: Summary) -> list[Factor]:
    """Return the factors with at least three numeric levels."""
    return [
        factor
        for factor in summary.plan.study.factors
        if sum(_parse_number(level.name) is not None for level in factor.levels) >= MIN_LEVELS
    ]


def response_curves(summary: Summary, factor: Factor, metric: str) -> list[ResponseCurve]:
    """Return a metric's curves along a factor. Cells of one arm share its figures."""
    by_cell = {
        frozenset(cell.items()): row.figures[metric]
        for row in summary.rows
        if row.arm is not None and metric in row.figures
        for cell in row.arm.cells
    }
    points_by_cell: dict[frozenset[tuple[str, str]], list[tuple[float, ArmMetric]]] = {}
    for cell, figure in by_cell.items():
        levels = dict(cell)
        value = _parse_number(levels.get(factor.name, ""))
        if value is not None:
            others = frozenset(item for item in cell if item[0] != factor.name)
            points_by_cell.setdefault(others, []).append((value, figure))
    names = [entry.name for entry in summary.plan.study.factors if entry.name != factor.name]
    return [
        ResponseCurve(
            others=", ".join(dict(others)[name] for name in names if name in dict(others)),
            points=sorted(points, key=lambda point: point[0]),
        )
        for others, points in points_by_cell.items()
        if len(points) > 1
    ]


def draw_response(
    summary: Summary, factor: Factor, metrics: Sequence[str]
) -> tuple[Picture, bytes] | None:
    """Draw a factor's curves, one panel per metric; None if there are none."""
    panels = [
        (metric, curves)
        for metric in metrics
        if (curves := response_curves(summary, factor, metric))
    ]
    if not panels:
        return None
    baseline = summary.plan.baseline

    def draw(figure: Any) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (metric, curves) in zip(grid, panels, strict=True):
            baseline_mean = next(
                (row.figures[metric].mean for row in summary.rows
                 if row.arm is baseline and metric in row.figures), None,
            )  # fmt: skip
            if baseline_mean is not None:
                axes.axhline(
                    baseline_mean, color=BASELINE_COLOUR, linewidth=0.8, linestyle=(0, (4, 3))
                )
            for index, curve in enumerate(curves[:_MAX_CURVES]):
                _draw_curve(axes, curve, COLOURS[index % len(COLOURS)], baseline_mean)
            scale_axis(axes.xaxis, sorted({x for curve in curves for x, _ in curve.points}))
            axes.set_xlabel(shorten_label(factor.name))
            axes.set_ylabel(metric_title(metric, summary.metrics[metric]))
            if len(curves) > 1:
                axes.legend()

    skipped = [level.name for level in factor.levels if _parse_number(level.name) is None]
    caption = (
        f"{factor.name}: mean over seeds (line), each seed (small dots). Bars: the 95 % interval "
        f"of the difference from {format_baseline(summary)}, drawn around its mean (dashed), so "
        "that a bar that does not cross the dashed line excludes zero difference; marginal, not "
        "corrected." + (f" Not on the axis: {', '.join(skipped)}." if skipped else "")
    )
    name = "response-" + re.sub(r"[^A-Za-z0-9]+", "-", factor.name).strip("-")
    width = 4.2 if len(panels) == 1 else 7.2
    return render_figure(name, caption, draw, height=_PANEL_HEIGHT + 0.4, width=width)


def _draw_curve(axes: Any, curve: ResponseCurve, colour: str, baseline_mean: float | None) -> None:
    xs = [x for x, _ in curve.points]
    for x, figure in curve.points:
        seeds = list(figure.values.values())
        axes.plot([x] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=4)
        if baseline_mean is not None and figure.interval is not None:
            low, high = figure.interval
            axes.plot(
                (x, x),
                (baseline_mean + low, baseline_mean + high),
                color=colour,
                linewidth=1.6,
                alpha=0.6,
            )
    means = [figure.mean for _, figure in curve.points]
    text = shorten_label(curve.others) or None
    axes.plot(xs, means, "o-", color=colour, markersize=5, linewidth=1.2, label=text)


def _parse_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
