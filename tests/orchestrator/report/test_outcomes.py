"""What the statistics compare: the items that all have, the seeds that have the figure."""

from __future__ import annotations

import json
from collections.abc import Callable

from orchestrator.plan.plan import Trial

from .conftest import ITEMS, STUDY, FinishedStudy, draw_noisy_score

Run = Callable[..., FinishedStudy]
CHAIR = "shapes/chair_i"


def test_an_item_missing_in_one_trial_is_left_out_of_all(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float] | None:
        gone = trial.name == "chip, trained, seed 1" and item in (3, 5)
        return None if gone else draw_noisy_score(trial, item, metric)

    one = make_finished_study(score=score).summary.compared[CHAIR]
    assert (len(one.items), one.dropped) == (ITEMS - 2, 2)
    assert {values.shape for values in one.results.metric(CHAIR).values} == {(3, ITEMS - 2)}


def test_without_item_outcomes_items_are_fixed(make_finished_study: Run) -> None:
    made = make_finished_study()
    (
        made.attempt_folder(made.find_trial("dpo, frozen, seed 1")) / "scores/report-shapes.json"
    ).unlink()
    summary = made.summary
    assert summary.compared[CHAIR].items == ()
    row = next(row for row in summary.rows if row.name == "chip, frozen")
    comparison = row.figures[CHAIR].comparison
    assert comparison is not None and comparison.contrast is not None
    assert comparison.contrast.kind == "seeds_only"
    # the figure shown and the difference are still those of the seeds
    base = next(row for row in summary.rows if row.name == "dpo, frozen").figures[CHAIR]
    assert abs(comparison.contrast.estimate - (row.figures[CHAIR].mean - base.mean)) < 1e-9


def test_items_that_leave_nothing_to_divide_by_are_fixed(make_finished_study: Run) -> None:
    """A figure can be there all the same: an official script adds constants."""
    made = make_finished_study()
    file = (
        made.attempt_folder(made.find_trial("chip, frozen, seed 0")) / "scores/report-shapes.json"
    )
    scores = json.loads(file.read_text())
    for metric in scores["metrics"]:
        metric["items"] = [{**item, "denominator": 0.0} for item in metric["items"]]
    file.write_text(json.dumps(scores))
    one = made.summary.compared[CHAIR]
    assert (one.items, one.dropped) == ((), 0)
    assert {values.shape for values in one.results.metric(CHAIR).values} == {(3, 1)}


def test_a_seed_without_the_figure_is_left_out_of_its_arm(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        silent = trial.name == "chip, trained, seed 2" and metric == "chair_i"
        return (0.0, 0.0) if silent else draw_noisy_score(trial, item, metric)

    summary = make_finished_study(score=score).summary
    seeds = {arm.name: arm.seeds for arm in summary.compared[CHAIR].results.arms}
    assert seeds == {
        "dpo, frozen": (0, 1, 2),
        "dpo, trained": (0, 1, 2),
        "chip, frozen": (0, 1, 2),
        "chip, trained": (0, 1),
    }
    assert summary.compared["shapes/cover"].results.arms[3].seeds == (0, 1, 2)


def test_an_arm_without_figures_leaves_the_others_compared(make_finished_study: Run) -> None:
    gone = [f"chip, trained, seed {seed}" for seed in range(3)]
    results = make_finished_study(without=gone).summary.compared[CHAIR].results
    assert [arm.name for arm in results.arms] == ["dpo, frozen", "dpo, trained", "chip, frozen"]


def test_without_the_baseline_nothing_is_compared(make_finished_study: Run) -> None:
    gone = [f"dpo, frozen, seed {seed}" for seed in range(3)]
    summary = make_finished_study(without=gone).summary
    assert summary.compared == {}
    assert all(figure.comparison is None for row in summary.rows for figure in row.figures.values())


def test_what_the_study_declares_reaches_the_statistics(make_finished_study: Run) -> None:
    text = STUDY.replace("goal: minimize}", "smallest_difference: 1.5}") + "exploratory: true\n"
    results = make_finished_study(text).summary.compared[CHAIR].results
    assert results.exploratory
    assert results.metric(CHAIR).smallest_difference == 1.5
