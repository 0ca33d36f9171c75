"""The table as data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.analysis import Verdict, compare_with_baseline
from orchestrator.plan.plan import Plan, Trial

from .conftest import STUDY, FinishedStudy, draw_noisy_score

Run = Callable[..., FinishedStudy]
CHAIR = "shapes/chair_i"


def test_a_difference_is_of_item_outcomes_and_has_its_verdict(make_finished_study: Run) -> None:
    summary = make_finished_study().summary
    rows = {row.name: row.figures[CHAIR] for row in summary.rows}
    # chip, frozen: one mention of 3 in every eleventh item; seed 0 has items 0, 11 and 22
    assert rows["chip, frozen"].values[0] == pytest.approx(100 * 3 / 90)
    assert rows["dpo, frozen"].comparison is None
    found = rows["chip, frozen"].comparison
    assert found is not None and found.verdict is Verdict.BETTER
    assert rows["chip, frozen"].difference == pytest.approx(
        rows["chip, frozen"].mean - rows["dpo, frozen"].mean
    )
    again = compare_with_baseline(summary.compared[CHAIR].results, CHAIR)
    assert [entry.p_adjusted for entry in again] == [
        rows[name].comparison.p_adjusted
        for name in ("dpo, trained", "chip, frozen", "chip, trained")
    ]


def test_declared_metrics_come_first_and_have_roles_and_effects(make_finished_study: Run) -> None:
    summary = make_finished_study(STUDY + "secondary: [shapes/cover]\n").summary
    assert list(summary.metrics)[:2] == [CHAIR, "shapes/cover"]
    assert [summary.role(metric) for metric in summary.metrics] == [
        "primary", "secondary", None, None,
    ]  # fmt: skip
    assert list(summary.effects) == [CHAIR, "shapes/cover"]
    assert [found.name for found in summary.effects[CHAIR].main] == [
        "objective: dpo → chip",
        "vision_encoder: frozen → trained",
    ]
    assert len(summary.effects[CHAIR].interactions) == 1


def test_trials_of_cells_that_are_gone_are_counted(
    make_finished_study: Run, plan_of: Callable[..., Plan]
) -> None:
    made = make_finished_study()
    assert made.summary.former_trials == 0
    made.plan = plan_of(STUDY.replace("[dpo, chip]", "[dpo, cmdpo]"))
    assert made.summary.former_trials == 6  # chip's two cells, three seeds each


def test_an_undefined_figure_is_missing_and_not_0(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        return (0.0, 0.0) if trial.arm == "chip, trained" else draw_noisy_score(trial, item, metric)

    row = make_finished_study(score=score).summary.rows[-1]
    assert row.name == "chip, trained"
    assert row.figures == {}
