"""What a job asks for, by what it does; a first signal asks it to stop, a second stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.training.checkpoint import list_checkpoints
from chip_core.utils.files import read_records
from orchestrator.executors.base import (
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
)
from orchestrator.executors.inline import InlineExecutor
from orchestrator.jobs.attempt import execute_job
from orchestrator.jobs.job import Job, StopRequest


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


SHORT = {
    "model": "shapes",
    "reference_cache": "off",
    "training": {"max_steps": 4, "batch_size": 2},
    "engine": {"threads": 1},
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_requests_a_stop_and_a_second_stops(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.install_signal_handlers():
        os.kill(os.getpid(), number)
        assert stop.is_requested
        assert "interrupt again to stop now" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_beginning_no_more_is_not_ending() -> None:
    stop = StopRequest()
    stop.drain("no room")
    assert (stop.is_draining, stop.is_requested, stop.drain_reason) == (True, False, "no room")


def make_jobs(folder: Path) -> list[Job]:
    config = TrialConfig.model_validate(SHORT)
    return [Job(id=name, name=name, config=config, folder=folder / name) for name in "ab"]


def test_ctrl_c_leaves_a_checkpoint_and_begins_nothing_new(tmp_path: Path) -> None:
    stop = StopRequest()
    events: list[JobEvent] = []

    def listener(event: JobEvent) -> None:
        events.append(event)
        if isinstance(event, JobProgressed) and event.progress.phase == "train":
            os.kill(os.getpid(), signal.SIGINT)

    first, second = make_jobs(tmp_path)
    with stop.install_signal_handlers(), pytest.raises(KeyboardInterrupt):
        InlineExecutor(stop).run([first, second], listener)
    ends = [event for event in events if isinstance(event, JobStarted | JobFinished | JobFailed)]
    assert ends == [
        JobStarted(job=first),
        # the signal came with step 1's figures: step 2 is made, and is the last
        JobFailed(job=first, reason="stopped after step 2 of 4", cause="stopped"),
    ]
    assert [path.name for path in list_checkpoints(first.folder)] == ["step-00000002"]
    assert [record["step"] for record in read_records(first.folder / "curves.jsonl")] == [1, 2]


def test_where_nothing_more_is_to_begin_what_runs_comes_to_its_end(tmp_path: Path) -> None:
    stop = StopRequest()
    events: list[JobEvent] = []

    def listener(event: JobEvent) -> None:
        events.append(event)
        stop.drain("no room")

    first, second = make_jobs(tmp_path)
    InlineExecutor(stop).run([first, second], listener)
    assert [event.job for event in events if isinstance(event, JobFinished)] == [first]
    assert not second.folder.exists()
