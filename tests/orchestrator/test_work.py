"""What a new attempt is handed of the earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.work import jobs_for, trial_folder


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
    handed = {trial.name: job for job, trial, _ in jobs_for(plan, Ledger(tmp_path), tmp_path)}
    assert handed[first.name].resume_from == trial_folder(tmp_path, first) / "attempt-2"
    assert handed[first.name].folder.name == "attempt-4"
    assert handed[second.name].resume_from is None
    assert handed[base.name].resume_from is None
