"""What is heard of jobs on Ray, as events; and processes that stand still."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.results import (
    AnsweredTrial,
    Answers,
    Progress,
    TrialResult,
    write_answered,
    write_result,
)
from orchestrator.executors.base import (
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobStarted,
)
from orchestrator.executors.ray import monitor as module
from orchestrator.executors.ray.job_process import JobOutcome
from orchestrator.executors.ray.monitor import DIED_REASON, OUT_OF_MEMORY_REASON, JobMonitor
from orchestrator.jobs.job import StopRequest
from orchestrator.storage.channel import JobChannel

STALL_AFTER = 60.0


@pytest.fixture
def job(tmp_path: Path) -> Job:
    config = TrialConfig.model_validate({"model": "shapes", "engine": {"stall_after": STALL_AFTER}})
    return Job(id="trial-1", name="a", config=config, folder=tmp_path / "attempt-1")


@pytest.fixture
def events() -> list[JobEvent]:
    return []


@pytest.fixture
def monitor(events: list[JobEvent]) -> JobMonitor:
    return JobMonitor(
        on_event=events.append,
        retry=None,
        begin_within=20.0,
        stop=StopRequest(),
        channel=JobChannel(),
        rule=None,
    )


class Clock:
    """Stands for the time module's."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_answers_are_an_end_and_the_next_step(
    monitor: JobMonitor, job: Job, events: list[JobEvent]
) -> None:
    monitor.on_start(job)
    answers = {"report/shapes": Answers(items=1, responses="x.jsonl")}
    answered = AnsweredTrial(steps=3, answers=answers, evaluations={}, seconds={})
    write_answered(job.folder, answered)
    scoring = monitor.on_end(job)
    assert scoring is not None and (scoring.answers, scoring.id) == (job.folder, "trial-score-1")
    assert events == [
        JobStarted(job=job),
        JobAnswered(job=job, answered_trial=answered, scoring_job=scoring),
    ]
    monitor.on_start(scoring)
    monitor.running[scoring.id].outcome = JobOutcome(cause="trial_error", reason="no judge")
    assert monitor.on_end(scoring) is None  # the answers alone are no end of it
    assert events[-1] == JobFailed(job=scoring, reason="no judge", cause="trial_error")
    result = TrialResult(steps=3, evaluations={}, seconds={})
    write_result(job.folder, result)
    monitor.on_start(scoring)
    assert monitor.on_end(scoring, DIED_REASON) is None  # after its last file
    assert events[-1] == JobFinished(job=scoring, result=result)


@pytest.mark.parametrize(
    ("died", "cause"), [(DIED_REASON, "worker_lost"), (OUT_OF_MEMORY_REASON, "memory")]
)
def test_a_process_that_died_is_told_by_what_it_died_of(
    monitor: JobMonitor, job: Job, events: list[JobEvent], died: str, cause: str
) -> None:
    monitor.on_start(job)
    monitor.on_end(job, died)
    last = events[-1]
    assert isinstance(last, JobFailed)
    assert (last.cause, last.reason) == (cause, f"the worker process died ({died})")
    assert last.from_outside


def test_a_process_that_stands_still_is_ended_once_it_should_have_ended_itself(
    monitor: JobMonitor, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ended = Clock(), list[tuple[str, int]]()
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "kill_process", lambda *process: ended.append(process))
    monitor.checked_at = clock.now
    monitor.on_start(job)
    monitor.running[job.id].process = ("192.0.2.1", 4711)

    def pass_by(seconds: int) -> None:
        for _ in range(seconds):
            clock.now += 1
            monitor.check_jobs()

    pass_by(50)
    monitor.on_progress(job, Progress(phase="train", done=1, total=9))
    pass_by(75)  # 60 seconds of silence, and 15 in which it ends itself and says where it hung
    assert ended == []
    pass_by(1)
    assert ended == [("192.0.2.1", 4711)]
    clock.now += 1000  # this process was stopped, not the job's: it counts as five seconds
    monitor.check_jobs()
    assert len(ended) == 1


def test_the_place_of_several_workers_is_free_once_their_job_has_ended(
    monitor: JobMonitor, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[object] = []
    monkeypatch.setattr(module, "remove_placement_group", freed.append)
    monitor.on_start(job)
    monitor.on_end(job, DIED_REASON)
    assert freed == []  # of one worker, Tune frees it
    monitor.on_start(job)
    monitor.running[job.id].placement_group = "two workers'"
    monitor.on_end(job, DIED_REASON)
    assert freed == ["two workers'"]
