"""Return the arms' aggregates as a tracker shows them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.report.formatting import verdict_words
from orchestrator.report.summary import ArmRow, Summary
from orchestrator.tracking.base import ArmView, Status

VERDICT = "chip.verdict"


def arm_views(summary: Summary) -> list[ArmView]:
    """Return each arm's means, deviations, differences, intervals and corrected p-values.

    A mean and its deviation have the scorer's unit, as the trials' own figures beside them; the
    difference and its interval are in points, as everywhere.
    """
    return [
        ArmView(
            arm=row.arm,
            figures=_figures(row, summary.scales),
            status=_status(row),
            tags=_tags(summary, row),
        )
        for row in summary.rows
        if row.arm is not None
    ]


def _figures(row: ArmRow, scales: Mapping[str, float]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, figure in row.figures.items():
        low, high = figure.interval or (None, None)
        found = figure.comparison
        scale = scales[name]
        parts = {
            name: figure.mean / scale,
            f"{name}.sd": None if figure.sd is None else figure.sd / scale,
            f"{name}.low": low,
            f"{name}.high": high,
            f"{name}.difference": figure.difference,
            f"{name}.p_adjusted": None if found is None else found.p_adjusted,
        }
        figures |= {key: value for key, value in parts.items() if value is not None}
    return figures


def _status(row: ArmRow) -> Status:
    states = set(row.states.values())
    if "failed" in states:
        return "FAILED"
    return "KILLED" if states & {"missing", "killed", "cut"} else "FINISHED"


def _tags(summary: Summary, row: ArmRow) -> dict[str, str | None]:
    """Return the verdict on the primary metric; None where there is none any more."""
    primary = summary.plan.study.primary
    figure = None if primary is None else row.figures.get(primary.metric)
    found = None if figure is None else figure.comparison
    return {VERDICT: None if found is None else verdict_words(found)}
