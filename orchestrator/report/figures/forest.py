"""Draw forest plots: differences with their intervals, below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.analysis import Comparison, Contrast
from orchestrator.report.figures.base import TONES, drawn, label
from orchestrator.report.formatting import baseline_text, metric_title, points_text, slug
from orchestrator.report.layout import Picture
from orchestrator.report.sections.arms import tone
from orchestrator.report.summary import Summary

MOST = 60  # lines of a figure
_WORDS = {
    "better": "better",
    "worse": "worse",
    "same": "no clear difference",
    "open": "inconclusive or no verdict",
}


def draw_differences(summary: Summary, metric: str) -> tuple[Picture, bytes] | None:
    """Draw the arms' differences from the baseline; None if there are none."""
    found = [
        figure.comparison
        for row in summary.rows
        if (figure := row.figures.get(metric)) is not None and figure.comparison is not None
    ]
    caption = (
        f"Differences from {baseline_text(summary)} on {metric}, with marginal 95 % "
        "intervals; coloured by verdict, which is corrected for the number of arms."
    )
    return _forest(summary, metric, found, f"forest-{slug(metric)}", caption)


def draw_effects(summary: Summary, metric: str) -> tuple[Picture, bytes] | None:
    """Draw main effects and interactions; None with fewer than two factors or no effects."""
    effects = summary.effects.get(metric)
    if effects is None or len(summary.plan.study.factors) < 2:
        return None
    caption = (
        f"Main effects and interactions (×) on {metric}, with marginal 95 % intervals; coloured "
        "by verdict."
    )
    found = [*effects.main, *effects.interactions]
    return _forest(summary, metric, found, f"effects-{slug(metric)}", caption)


def _forest(
    summary: Summary, metric: str, found: Sequence[Comparison], name: str, caption: str
) -> tuple[Picture, bytes] | None:
    lines = [(entry, entry.contrast) for entry in found if entry.contrast is not None]
    if not lines:
        return None
    if len(lines) > MOST:
        caption += f" The first {MOST} of {len(lines)}."
        lines = lines[:MOST]
    info = summary.metrics[metric]
    delta = next(
        entry.smallest_difference
        for entry in summary.plan.study.declared_metrics
        if entry.metric == metric
    )

    # An interaction is named after two effects, which go on a line each.
    labels = ["\n× ".join(map(label, entry.name.split(" × "))) for entry, _ in lines]
    room = 0.42 if any("\n" in text for text in labels) else 0.3

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=TONES[""], linewidth=1)
        if delta is not None:
            axes.axvspan(-delta, delta, color="#0b5cad", alpha=0.07, linewidth=0)
        for place, (entry, contrast) in enumerate(lines):
            _line(axes, place, entry, contrast)
        axes.set_yticks(range(len(lines)), labels)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(False, axis="y")
        side = "left" if info.goal == "minimize" else "right"
        axes.set_xlabel(
            f"difference in {metric_title(metric, info)}, {points_text(info)} (better: {side})"
        )
        _legend(axes, {tone(entry) for entry, _ in lines}, delta)

    return drawn(name, caption, draw, height=1.15 + room * len(lines))


def _line(axes: Any, place: int, entry: Comparison, contrast: Contrast) -> None:
    colour = TONES[tone(entry)]
    if contrast.interval is not None:
        axes.plot(contrast.interval, (place, place), color=colour, linewidth=2)
    axes.plot(contrast.estimate, place, "o", color=colour, markersize=6)


def _legend(axes: Any, tones: set[Any], delta: float | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=TONES[kind], marker="o", linewidth=2, label=words)  # type: ignore[index]
        for kind, words in _WORDS.items()
        if kind in tones
    ]
    if delta is not None:
        handles.append(Patch(color="#0b5cad", alpha=0.15, label="within ±δ"))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), borderpad=0
    )
