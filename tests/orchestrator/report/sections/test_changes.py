"""The items whose answers changed most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.plan.plan import Trial
from orchestrator.report.layout import ChangedItems
from orchestrator.report.outcomes import load_scores
from orchestrator.report.sections.changes import ITEMS_PER_DIRECTION, largest_changes

from ..conftest import FinishedStudy

Run = Callable[..., FinishedStudy]
ARM = "chip, frozen"


def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
    """One of 3 is invented everywhere; chip, frozen: all on item 4, none on 8 in seed 1 alone."""
    if trial.arm == ARM and item == 4:
        return 3.0, 3.0
    if trial.name == f"{ARM}, seed 1" and item == 8:
        return 0.0, 3.0
    return 1.0, 3.0


def changes_by_arm(study: FinishedStudy) -> dict[str, ChangedItems]:
    scores = load_scores(study.plan, study.ledger, study.workdir)
    tables = largest_changes(study.summary, scores, study.ledger, study.workdir)
    return {table.arm: table for table in tables}


def test_the_largest_changes_with_both_answers(make_finished_study: Run) -> None:
    found = changes_by_arm(make_finished_study(score=score))
    assert list(found) == [ARM]  # elsewhere nothing changed
    better, worse = found[ARM].items[0], found[ARM].items[-1]
    assert (better.item, better.seed, better.better) == ("test/8", 1, True)
    assert (better.baseline.score, better.arm.score) == ("1 of 3", "0 of 3")
    assert better.arm.text == f"{ARM}, seed 1 on 8"
    assert better.baseline.text == "dpo, frozen, seed 1 on 8"
    assert len(found[ARM].items) == 2
    assert (worse.item, worse.better, worse.arm.score) == ("test/4", False, "3 of 3")
    assert better.truth == "a red moon"
    # items are of 3 mentions: an item's value is R + 100·(num − R·den)/3, but for R the rate of
    # the item; item 4 goes from a third to all in every seed
    assert worse.change == pytest.approx(100 * (1 - 1 / 3))
    assert better.change == pytest.approx(-100 / 3 / 3)  # in one of three seeds


def test_the_embedded_worlds_images_are_drawn_again(make_finished_study: Run) -> None:
    ((media, content),) = changes_by_arm(make_finished_study(score=score))[ARM].items[0].images
    assert media == "image/png"
    assert content.startswith(b"\x89PNG")


def test_the_largest_changes_each_way_are_shown(make_finished_study: Run) -> None:
    def many(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        return (item % 3 if trial.arm == ARM else 1.0), 3.0

    found = changes_by_arm(make_finished_study(score=many))[ARM]
    assert [change.better for change in found.items] == [True] * ITEMS_PER_DIRECTION + [
        False
    ] * ITEMS_PER_DIRECTION


def test_a_unit_that_is_no_question_is_not_shown(make_finished_study: Run) -> None:
    """Some figures count sets of questions: there is no answer to show."""
    made = make_finished_study(score=score)
    for trial in made.plan.trials:
        file = made.attempt_folder(trial) / "responses/report-shapes.jsonl"
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join(row for row in rows if '"item": "test/8"' not in row))
    assert [change.item for change in changes_by_arm(made)[ARM].items] == ["test/4"]


def test_answers_of_any_kind(make_finished_study: Run) -> None:
    def response(trial: Trial, item: int) -> dict[str, Any]:
        return {"response": "\ud800broken", "truth": ["a ball", "a cube"]}

    change = changes_by_arm(make_finished_study(score=score, response=response))[ARM].items[0]
    assert change.truth == '["a ball", "a cube"]'
    assert change.arm.text == "?broken"  # half a character cannot be written


def test_an_arm_whose_seeds_the_baseline_has_not(make_finished_study: Run) -> None:
    gone = ["dpo, frozen, seed 1", "dpo, frozen, seed 2", f"{ARM}, seed 0"]
    change = changes_by_arm(make_finished_study(score=score, without=gone))[ARM].items[-1]
    assert change.baseline.text.startswith("dpo, frozen, seed 0")
    assert change.arm.text.startswith(f"{ARM}, seed 1")


def test_without_item_outcomes_there_are_none(make_finished_study: Run) -> None:
    made = make_finished_study()
    (
        made.attempt_folder(made.find_trial("dpo, frozen, seed 1")) / "scores/report-shapes.json"
    ).unlink()
    assert changes_by_arm(made) == {}
