"""Draw response curves: a metric along a factor with numeric levels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.figures.base import BASELINE, COLOURS, drawn, label, number_axis
from orchestrator.report.formatting import baseline_text, metric_title
from orchestrator.report.layout import Picture
from orchestrator.report.summary import Figure, Summary
from orchestrator.study.model import Factor

LEAST = 3  # levels of a curve
MOST_PANELS = 3
_PANEL = 2.6  # inches of height
_SHOWN_LINES = 10


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve over the levels of one factor, for one combination of the others."""

    others: str  # the other factors' levels; may be empty
    points: Sequence[tuple[float, Figure]]


def numeric_factors(summary: Summary) -> list[Factor]:
    """Return the factors with at least three numeric levels."""
    return [
        factor
        for factor in summary.plan.study.factors
        if sum(_number(level.name) is not None for level in factor.levels) >= LEAST
    ]


def lines(summary: Summary, factor: Factor, metric: str) -> list[Line]:
    """Return a metric's curves along a factor. Cells of one arm share its figures."""
    by_cell = {
        frozenset(cell.items()): row.figures[metric]
        for row in summary.rows
        if row.arm is not None and metric in row.figures
        for cell in row.arm.cells
    }
    found: dict[frozenset[tuple[str, str]], list[tuple[float, Figure]]] = {}
    for cell, figure in by_cell.items():
        levels = dict(cell)
        value = _number(levels.get(factor.name, ""))
        if value is not None:
            others = frozenset(item for item in cell if item[0] != factor.name)
            found.setdefault(others, []).append((value, figure))
    names = [entry.name for entry in summary.plan.study.factors if entry.name != factor.name]
    return [
        Line(
            others=", ".join(dict(others)[name] for name in names if name in dict(others)),
            points=sorted(points, key=lambda point: point[0]),
        )
        for others, points in found.items()
        if len(points) > 1
    ]


def draw_response(
    summary: Summary, factor: Factor, metrics: Sequence[str]
) -> tuple[Picture, bytes] | None:
    """Draw a factor's curves, one panel per metric; None if there are none."""
    panels = [(metric, found) for metric in metrics if (found := lines(summary, factor, metric))]
    if not panels:
        return None
    baseline = summary.plan.baseline

    def draw(figure: Any) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (metric, found) in zip(grid, panels, strict=True):
            middle = next(
                (row.figures[metric].mean for row in summary.rows
                 if row.arm is baseline and metric in row.figures), None,
            )  # fmt: skip
            if middle is not None:
                axes.axhline(middle, color=BASELINE, linewidth=0.8, linestyle=(0, (4, 3)))
            for place, line in enumerate(found[:_SHOWN_LINES]):
                _draw_line(axes, line, COLOURS[place % len(COLOURS)], middle)
            number_axis(axes.xaxis, sorted({x for line in found for x, _ in line.points}))
            axes.set_xlabel(label(factor.name))
            axes.set_ylabel(metric_title(metric, summary.metrics[metric]))
            if len(found) > 1:
                axes.legend()

    skipped = [level.name for level in factor.levels if _number(level.name) is None]
    caption = (
        f"{factor.name}: mean over seeds (line), each seed (small dots). Bars: the 95 % interval "
        f"of the difference from {baseline_text(summary)}, drawn about its mean (dashed), so that "
        "a bar off the dashed line leaves out no difference; marginal, not corrected."
        + (f" Not on the axis: {', '.join(skipped)}." if skipped else "")
    )
    name = "response-" + re.sub(r"[^A-Za-z0-9]+", "-", factor.name).strip("-")
    width = 4.2 if len(panels) == 1 else 7.2
    return drawn(name, caption, draw, height=_PANEL + 0.4, width=width)


def _draw_line(axes: Any, line: Line, colour: str, middle: float | None) -> None:
    places = [x for x, _ in line.points]
    for x, figure in line.points:
        seeds = list(figure.values.values())
        axes.plot([x] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=4)
        if middle is not None and figure.interval is not None:
            low, high = figure.interval
            axes.plot((x, x), (middle + low, middle + high), color=colour, linewidth=1.6, alpha=0.6)
    means = [figure.mean for _, figure in line.points]
    text = label(line.others) or None
    axes.plot(places, means, "o-", color=colour, markersize=5, linewidth=1.2, label=text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
