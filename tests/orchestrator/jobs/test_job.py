"""What a job asks for, by what it does."""

from __future__ import annotations

from pathlib import Path

from chip_core.config.trial import TrialConfig
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
        earlier=(Path("attempt-1"),),
        may_be_cut=True,
    )
    assert (job.trains, job.workers, job.gpus) == (True, 4, 4.0)
    scoring = job.scoring()
    assert (scoring.id, scoring.folder, scoring.answers) == ("0123-score-2", folder, folder)
    assert (scoring.trains, scoring.workers, scoring.gpus) == (False, 1, 0.0)
    assert (scoring.resume_from, scoring.earlier, scoring.may_be_cut) == (None, (), False)
