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
    drawn_costs = costs[:MAX_ARMS]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        offsets = [0.0] * len(drawn_costs)
        for field_name, title, colour in _PARTS:
            widths = [getattr(cost, field_name) for cost in drawn_costs]
            axes.barh(
                range(len(drawn_costs)),
                widths,
                left=offsets,
                color=colour,
                label=title,
                height=0.65,
            )
            offsets = [start + width for start, width in zip(offsets, widths, strict=True)]
        axes.set_yticks(range(len(drawn_costs)), [shorten_label(cost.name) for cost in drawn_costs])
        axes.set_ylim(len(drawn_costs) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("seconds of a trial, mean over seeds")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderpad=0)

    cut_note = (
        "" if len(drawn_costs) == len(costs) else f" The first {MAX_ARMS} of {len(costs)} arms."
    )
    caption = f"The cost of a trial, by arm, on the machines that ran them.{cut_note}"
    return render_figure("cost", caption, draw, height=1.0 + 0.26 * len(drawn_costs))
