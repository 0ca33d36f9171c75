"""Draw training curves by arm: mean and range over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.figures.base import arm_style, render_figure, shorten_label
from orchestrator.report.formatting import metric_title
from orchestrator.report.layout import Picture
from orchestrator.report.sections.training import CURVE_TITLES, Band
from orchestrator.report.summary import Summary

MAX_ARMS = 12  # arms of a figure
_LEGEND_WIDTH = 100  # characters per line of the legend


def draw_training(
    summary: Summary, curves: Mapping[str, Sequence[Band]]
) -> tuple[Picture, bytes] | None:
    """Draw the training curves, one panel per figure; None if there are none."""
    caption = (
        "Training curves: mean over seeds, shaded from the lowest seed to the highest. Losses of "
        "different objectives are different quantities and cannot be compared."
    )
    return _draw_curves(summary, curves, CURVE_TITLES, "training", caption)


def draw_checkpoints(
    summary: Summary, curves: Mapping[str, Sequence[Band]]
) -> tuple[Picture, bytes] | None:
    """Draw the checkpoints' figures under `select` by step; None if none was scored."""
    titles = {metric: metric_title(metric, summary.metrics[metric]) for metric in curves}
    caption = (
        "The figures of a training's model on `select` by number of steps: mean over seeds, "
        "shaded from the lowest seed to the highest. Step 0 is the untrained model."
    )
    return _draw_curves(summary, curves, titles, "checkpoints", caption)


def _draw_curves(
    summary: Summary,
    curves: Mapping[str, Sequence[Band]],
    titles: Mapping[str, str],
    figure_name: str,
    caption: str,
) -> tuple[Picture, bytes] | None:
    if not curves:
        return None
    arms = [arm.name for arm in summary.plan.arms]
    drawn_arms = arms[:MAX_ARMS]
    baseline = summary.plan.baseline.name
    if baseline not in drawn_arms:
        drawn_arms = [baseline, *drawn_arms[:-1]]

    names = [shorten_label(name) for name in drawn_arms]
    legend_columns = max(1, min(4, _LEGEND_WIDTH // (max(map(len, names)) + 6)))

    def draw(figure: Any) -> None:
        columns = min(len(curves), 2)
        grid = figure.subplots(-(-len(curves) // columns), columns, squeeze=False)
        for axes in grid.flat[len(curves) :]:
            axes.set_axis_off()
        handles: dict[str, Any] = {}
        for axes, (name, bands) in zip(grid.flat, curves.items(), strict=False):
            for band in bands:
                if band.arm not in drawn_arms:
                    continue
                colour, _ = arm_style(arms.index(band.arm), baseline=band.arm == baseline)
                axes.fill_between(
                    band.steps, band.low, band.high, color=colour, alpha=0.15, linewidth=0
                )
                (handles[shorten_label(band.arm)],) = axes.plot(
                    band.steps, band.mean, color=colour, linewidth=1.2
                )
            axes.set_title(titles[name], loc="left")
            axes.set_xlabel("step")
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns
        )

    caption += "" if len(drawn_arms) == len(arms) else f" {len(drawn_arms)} of {len(arms)} arms."
    rows = -(-len(curves) // 2)
    return render_figure(
        figure_name,
        caption,
        draw,
        height=2.0 * rows + 0.35 + 0.2 * -(-len(drawn_arms) // legend_columns),
    )
