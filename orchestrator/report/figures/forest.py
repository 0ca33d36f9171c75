"""Draw forest plots: differences with their intervals, below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.analysis import Comparison, Contrast
from orchestrator.report.figures.base import TONE_COLOURS, render_figure, shorten_label
from orchestrator.report.formatting import (
    format_baseline,
    format_difference_unit,
    metric_title,
    slugify,
)
from orchestrator.report.layout import Picture
from orchestrator.report.sections.arms import verdict_tone
from orchestrator.report.summary import Summary

MAX_LINES = 60  # lines of a figure
_TONE_LABELS = {
    "better": "better",
    "worse": "worse",
    "same": "no clear difference",
    "open": "inconclusive or no verdict",
}


def draw_differences(summary: Summary, metric: str) -> tuple[Picture, bytes] | None:
    """Draw the arms' differences from the baseline; None if there are none."""
    comparisons = [
        comparison for row in summary.rows if (comparison := row.comparison(metric)) is not None
    ]
    caption = (
        f"Differences from {format_baseline(summary)} on {metric}, with marginal 95 % "
        "intervals; coloured by verdict, which is corrected for the number of arms."
    )
    return _draw_forest(summary, metric, comparisons, f"forest-{slugify(metric)}", caption)


def draw_effects(summary: Summary, metric: str) -> tuple[Picture, bytes] | None:
    """Draw main effects and interactions; None with fewer than two factors or no effects."""
    effects = summary.effects.get(metric)
    if effects is None or len(summary.plan.study.factors) < 2:
        return None
    caption = (
        f"Main effects and interactions (×) on {metric}, with marginal 95 % intervals; coloured "
        "by verdict."
    )
    comparisons = [*effects.main, *effects.interactions]
    return _draw_forest(summary, metric, comparisons, f"effects-{slugify(metric)}", caption)


def _draw_forest(
    summary: Summary, metric: str, comparisons: Sequence[Comparison], name: str, caption: str
) -> tuple[Picture, bytes] | None:
    lines = [(entry, entry.contrast) for entry in comparisons if entry.contrast is not None]
    if not lines:
        return None
    if len(lines) > MAX_LINES:
        caption += f" The first {MAX_LINES} of {len(lines)}."
        lines = lines[:MAX_LINES]
    info = summary.metrics[metric]
    delta = next(
        entry.smallest_difference
        for entry in summary.plan.study.declared_metrics
        if entry.metric == metric
    )

    # An interaction is named after two effects, which go on a line each.
    labels = ["\n× ".join(map(shorten_label, entry.name.split(" × "))) for entry, _ in lines]
    line_height = 0.42 if any("\n" in text for text in labels) else 0.3

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=TONE_COLOURS[""], linewidth=1)
        if delta is not None:
            axes.axvspan(-delta, delta, color="#0b5cad", alpha=0.07, linewidth=0)
        for index, (entry, contrast) in enumerate(lines):
            _draw_line(axes, index, entry, contrast)
        axes.set_yticks(range(len(lines)), labels)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(False, axis="y")
        better_side = "left" if info.goal == "minimize" else "right"
        axes.set_xlabel(
            f"difference in {metric_title(metric, info)}, {format_difference_unit(info)} (better: "
            f"{better_side})"
        )
        _draw_legend(axes, {verdict_tone(entry) for entry, _ in lines}, delta)

    return render_figure(name, caption, draw, height=1.15 + line_height * len(lines))


def _draw_line(axes: Any, index: int, entry: Comparison, contrast: Contrast) -> None:
    colour = TONE_COLOURS[verdict_tone(entry)]
    if contrast.interval is not None:
        axes.plot(contrast.interval, (index, index), color=colour, linewidth=2)
    axes.plot(contrast.estimate, index, "o", color=colour, markersize=6)


def _draw_legend(axes: Any, tones: set[Any], delta: float | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=TONE_COLOURS[tone_name], marker="o", linewidth=2, label=text)  # type: ignore[index]
        for tone_name, text in _TONE_LABELS.items()
        if tone_name in tones
    ]
    if delta is not None:
        handles.append(Patch(color="#0b5cad", alpha=0.15, label="within ±δ"))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), borderpad=0
    )
