"""Draw the seconds per trial by arm and phase."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.report.figures.base import render_figure, shorten_label
from orchestrator.report.layout import Picture
from orchestrator.report.sections.costs import ArmCost

MAX_ARMS = 40  # arms of a figure
_PARTS = (("train", "training", "#0072B2"), ("answer", "answers", "#56B4E9"),
          ("score", "scoring", "#E69F00"), ("other", "loading and checks", "#b0b0b0"))  # fmt: skip


def draw_costs(costs: Sequence[ArmCost]) -> tuple[Picture, bytes] | None:
    """Draw the bars; None if nothing has run."""
    if not costs:
        return None
    shown = costs[:MAX_ARMS]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        left = [0.0] * len(shown)
        for part, title, colour in _PARTS:
            widths = [getattr(cost, part) for cost in shown]
            axes.barh(range(len(shown)), widths, left=left, color=colour, label=title, height=0.65)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(shown)), [shorten_label(cost.name) for cost in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("seconds of a trial, mean over seeds")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0)

    cut_note = "" if len(shown) == len(costs) else f" The first {MAX_ARMS} of {len(costs)} arms."
    caption = f"What a trial cost, by arm, on the machines that ran them.{cut_note}"
    return render_figure("cost", caption, draw, height=1.0 + 0.26 * len(shown))
