"""What a job asks for, by what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.config.trial import TrialConfig
from orchestrator.jobs.attempt import execute_job
from orchestrator.jobs.job import Job


def test_scoring_holds_one_process_and_no_gpu() -> None:
    settings = {"model": "shapes", "engine": {"workers_per_trial": 4, "gpus_per_worker": 1}}
    folder = Path("attempt-2")
    job = Job(
        id="0123-2",
        name="a",
        config=TrialConfig.model_validate(settings),
        folder=folder,
        resume_from=Path("attempt-1"),
        earlier_attempts=(Path("attempt-1"),),
        can_stop_early=True,
    )
    assert (job.is_training, job.num_workers, job.num_gpus) == (True, 4, 4.0)
    scoring = job.scoring_job()
    assert (scoring.id, scoring.folder, scoring.answers) == ("0123-score-2", folder, folder)
    assert (scoring.is_training, scoring.num_workers, scoring.num_gpus) == (False, 1, 0.0)
    assert (scoring.resume_from, scoring.earlier_attempts, scoring.can_stop_early) == (
        None,
        (),
        False,
    )


def test_a_merged_model_that_a_killed_attempt_left_goes(tmp_path: Path) -> None:
    left = tmp_path / "attempt-1/selection/step-00000002/.served/chip-0/model.safetensors"
    kept = tmp_path / "attempt-1/model/model.safetensors"
    for file in (left, kept):
        file.parent.mkdir(parents=True)
        file.touch()
    job = Job(
        id="0123-2",
        name="a",
        config=TrialConfig.model_validate({"model": str(tmp_path / "absent")}),
        folder=tmp_path / "attempt-2",
        earlier_attempts=(tmp_path / "attempt-1",),
    )
    with pytest.raises(FileNotFoundError):  # there is no such model
        execute_job(job, print)
    assert not left.parents[1].exists() and kept.exists()
