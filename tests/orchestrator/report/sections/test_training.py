"""Training curves by arm."""

from __future__ import annotations

import json
from collections.abc import Callable

from orchestrator.report.sections.training import (
    load_checkpoint_curves,
    load_training_curves,
    picked_checkpoint_blocks,
)

from ..conftest import STUDY, FinishedStudy

Run = Callable[..., FinishedStudy]


def test_mean_and_range_over_seeds(make_finished_study: Run) -> None:
    made = make_finished_study()
    (band, *others) = load_training_curves(made.plan, made.ledger, made.workdir)["loss"]
    assert (band.arm, band.seeds, len(others)) == ("dpo, frozen", 3, 3)
    assert band.steps.tolist() == [1, 2, 3, 4]
    # loss = 1/step + seed: the seeds' mean is 1 above the lowest
    assert band.mean.tolist() == [2, 1.5, 1 + 1 / 3, 1.25]
    assert band.low.tolist() == [1, 0.5, 1 / 3, 0.25]
    assert band.high.tolist() == [3, 2.5, 2 + 1 / 3, 2.25]


def test_a_training_that_went_on_has_its_beginning(make_finished_study: Run) -> None:
    made = make_finished_study(without=["dpo, frozen, seed 1"])
    trial = made.find_trial("dpo, frozen, seed 1")
    made.finish(trial)
    whole = made.attempt_folder(trial) / "curves.jsonl"
    points = [json.loads(line) for line in whole.read_text().splitlines()]
    attempts = made.attempt_folder(trial).parent
    made.attempt_folder(trial).rename(attempts / "attempt-2")
    made.ledger[trial.fingerprint].model = str((attempts / "attempt-2").relative_to(made.workdir))
    points[1]["figures"]["loss"] = 99.0  # cut off after step 2, which was done again
    (attempts / "attempt-1").mkdir()
    first, second = points[:2], json.loads(json.dumps(points[1:]))
    second[0]["figures"]["loss"] = 1.5
    for number, part in ((1, first), (2, second)):
        text = "".join(json.dumps(point) + "\n" for point in part)
        (attempts / f"attempt-{number}" / "curves.jsonl").write_text(text)
    (band, *_) = load_training_curves(made.plan, made.ledger, made.workdir)["loss"]
    assert (band.seeds, band.mean.tolist()[1]) == (3, 1.5)


def test_an_arm_that_was_not_trained_has_none(make_finished_study: Run) -> None:
    gone = [f"dpo, frozen, seed {seed}" for seed in range(3)]
    made = make_finished_study(without=gone)
    bands = load_training_curves(made.plan, made.ledger, made.workdir)["loss"]
    assert [band.arm for band in bands] == ["dpo, trained", "chip, frozen", "chip, trained"]


def test_checkpoints_are_drawn_from_the_untrained_model_on(make_finished_study: Run) -> None:
    text = STUDY.replace("report: [shapes]", "report: [shapes]\n  select: [shapes]")
    made = make_finished_study(text)
    for trial in made.plan.trials:
        if trial.arm == "chip, trained":
            value = 4.0 - (trial.seed or 0)
            made.ledger[trial.fingerprint].picked = {
                "step": 2,
                "steps": 4,
                "why": "told so",
                "points": [
                    {"step": 0, "figures": {"select/shapes/chair_i": 99.0}},  # the table's counts
                    {"step": 2, "figures": {"select/shapes/chair_i": value}},
                    {"step": 4, "figures": {"select/shapes/chair_i": 2 * value}},
                ],
            }
    (bands,) = load_checkpoint_curves(made.summary, made.ledger).values()
    (band,) = bands
    assert (band.arm, band.seeds) == ("chip, trained", 3)
    assert band.steps.tolist() == [2, 4]  # the untrained model was not asked `select` here
    assert band.mean.tolist() == [3, 6] and band.low.tolist() == [2, 4]
    # No trial asks to be scored on its way.
    assert picked_checkpoint_blocks(made.plan, made.ledger) == []
