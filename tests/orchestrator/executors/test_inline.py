"""The in-process executor: one end a job, the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.utils.errors import UserError
from orchestrator.executors.base import (
    Job,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
)
from orchestrator.executors.inline import InlineExecutor
from orchestrator.jobs.attempt import TRACEBACK_FILE

SHORT = {
    "model": "shapes",
    "training": {"max_steps": 1, "batch_size": 2},
    "engine": {"threads": 1},
}


def test_a_failure_is_that_jobs_alone(tmp_path: Path) -> None:
    configs = {
        "bad": TrialConfig.model_validate({**SHORT, "data": {"limit": 1}}),
        "good": TrialConfig.model_validate(SHORT),
    }
    jobs = [
        Job(id=name, name=name, config=config, folder=tmp_path / name)
        for name, config in configs.items()
    ]
    events: list[JobEvent] = []
    InlineExecutor().run(jobs, events.append)
    ends = [event for event in events if isinstance(event, JobStarted | JobFailed | JobFinished)]
    assert [(type(event), event.job.id) for event in ends] == [
        (JobStarted, "bad"),
        (JobFailed, "bad"),
        (JobStarted, "good"),
        (JobFinished, "good"),
    ]
    (failed,) = [event for event in events if isinstance(event, JobFailed)]
    assert failed.reason == "no full batch: 1 pairs, training.batch_size 2"
    assert "TrialError" in (tmp_path / "bad" / TRACEBACK_FILE).read_text()


def test_a_trial_of_several_workers_is_refused(tmp_path: Path) -> None:
    config = TrialConfig.model_validate({**SHORT, "engine": {"workers_per_trial": 2}})
    job = Job(id="a", name="a", config=config, folder=tmp_path / "a")
    with pytest.raises(UserError, match="workers_per_trial is 2, and the inline executor has one"):
        InlineExecutor().run([job], lambda event: None)
    assert not job.folder.exists()


def test_what_a_listener_raises_is_no_trials_failure(tmp_path: Path) -> None:
    job = Job(id="a", name="a", config=TrialConfig.model_validate(SHORT), folder=tmp_path / "a")
    events: list[JobEvent] = []

    def listener(event: JobEvent) -> None:
        events.append(event)
        if isinstance(event, JobProgressed):
            raise OSError("no room for the ledger")

    with pytest.raises(OSError, match="no room for the ledger"):
        InlineExecutor().run([job], listener)
    assert not any(isinstance(event, JobFailed) for event in events)
