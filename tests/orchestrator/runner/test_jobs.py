"""What a new attempt is handed of the earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from chip_core.results import TrialResult
from orchestrator.plan.plan import Plan
from orchestrator.runner.jobs import make_jobs, sort_longest_first, trial_folder, trial_view
from orchestrator.state.ledger import Ledger


def test_an_attempt_goes_on_from_the_newest_that_left_checkpoints(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of()
    base, first, second = plan.trials[:3]
    for number, left in ((1, True), (2, True), (3, False)):
        folder = trial_folder(tmp_path, first) / f"attempt-{number}"
        folder.mkdir(parents=True)
        if left:
            (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    handed = {trial.name: job for job, trial, _ in make_jobs(plan, Ledger(tmp_path), tmp_path)}
    assert handed[first.name].resume_from == trial_folder(tmp_path, first) / "attempt-2"
    assert handed[first.name].folder.name == "attempt-4"
    assert handed[second.name].resume_from is None
    assert handed[base.name].resume_from is None


def test_the_trials_of_a_seed_come_from_the_longest_to_the_shortest(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    text = """
study: long
question: q
recipe: shapes
factors:
  objective: [dpo, chip]  # two views of a pair, and three
  vision_encoder: [frozen, trained]
  training.max_steps: [4, 6]
seeds: [0, 1]
baseline: {objective: dpo, vision_encoder: frozen, training.max_steps: 4}
"""
    # Views read: 6 × 3, 6 × 2 and 4 × 3 (the same: then the trained parts tell), 4 × 2.
    order = [
        "chip, trained, 6",
        "chip, frozen, 6",
        "dpo, trained, 6",
        "chip, trained, 4",
        "dpo, frozen, 6",
        "chip, frozen, 4",
        "dpo, trained, 4",
        "dpo, frozen, 4",
    ]
    plan = plan_of(text)
    jobs = sort_longest_first(make_jobs(plan, Ledger(tmp_path), tmp_path), plan)
    assert [trial.name for _, trial, _ in jobs] == [
        "base",
        *(f"{arm}, seed {seed}" for seed in (0, 1) for arm in order),
    ]


def test_under_early_stopping_trials_come_as_planned(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    text = """
study: cut
question: q
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0, 1]
baseline: {objective: dpo}
early_stopping: {method: asha, metric: reward/accuracy}
"""
    plan = plan_of(text)
    jobs = sort_longest_first(make_jobs(plan, Ledger(tmp_path), tmp_path), plan)
    names = ["base", "dpo, seed 0", "chip, seed 0", "dpo, seed 1", "chip, seed 1"]
    assert [trial.name for _, trial, _ in jobs] == names


def test_how_a_trial_was_trained_is_remembered(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    trial = plan_of().trials[1]
    result = TrialResult(
        steps=3, evaluations={}, seconds={}, engine={"prefix_sharing": "off (a reason)"}
    )
    Ledger(tmp_path).record_result(trial, "small", 1, "trials/x/attempt-1", result)
    seen = trial_view(trial, Ledger(tmp_path), tmp_path, "small", "FINISHED")  # read from the file
    assert seen.engine == {"prefix_sharing": "off (a reason)"}
