"""What every executor does, asked of each in the same words (test_conformance.py).

Jobs do what ray_jobs.py says under their names. Ray is slow to start: a backend is opened once, and
all but the stop is asked of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chip_core.config.trial import TrialConfig
from orchestrator.executors.base import (
    Executor,
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
)
from orchestrator.jobs.attempt import Cause
from orchestrator.jobs.job import StopRequest

#: How each of these jobs ends.
CAUSES: dict[str, Cause] = {
    "boom": "trial_error",
    "no_room": "memory",
    "disk_full": "disk",
    "storage_away": "worker_lost",
    "killed": "worker_lost",
    "silent": "worker_lost",
    "hangs": "worker_lost",
    "second_fails": "trial_error",
    "second_dies": "worker_lost",
}
#: Of these, another attempt is made, which ends well.
RETRIED_CAUSES: tuple[Cause, ...] = ("worker_lost", "memory")


@dataclass(kw_only=True)
class Backend:
    """An executor, and what is asked of it."""

    executor: Executor
    stop: StopRequest
    names: Sequence[str]  # of the first run's jobs
    folder: Path
    workers: int = 1
    jobs: list[Job] = field(default_factory=list)
    events: list[JobEvent] = field(default_factory=list)
    later_jobs: tuple[Job, Job] | None = None  # jobs of which one came after the other
    on_progress: Callable[[], None] = lambda: None  # called while a job of the first run is at work

    def make_job(self, number: int, name: str) -> Job:
        """Return a job that does what its name says."""
        engine: dict[str, float] = {"workers_per_trial": self.workers}
        if name == "hangs":
            engine["stall_after"] = 2.0
        settings = {"model": "shapes", "engine": engine}
        folder = self.folder / f"{number}-{name}"
        config = TrialConfig.model_validate(settings)
        return Job(id=f"{number}-{name}", name=name, config=config, folder=folder)

    def retry(self, failed: JobFailed) -> Job | None:
        """Return the next attempt of a job that failed from outside."""
        job = failed.job
        if failed.cause not in RETRIED_CAUSES:
            return None
        return replace(job, id=f"{job.id}-2", name="steps", folder=self.folder / f"{job.id}-2")

    def run_first(self) -> None:
        """Run jobs that end in each way."""
        self.jobs = [self.make_job(number, name) for number, name in enumerate(self.names)]

        def listen(event: JobEvent) -> None:
            self.events.append(event)
            if isinstance(event, JobProgressed):
                self.on_progress()

        self.executor.run(self.jobs, listen, self.retry)

    def list_events(self, job: Job) -> list[JobEvent]:
        """Return what was told of a job."""
        return [event for event in self.events if event.job.id == job.id]

    def read_process_id(self, job: Job) -> str:
        """Return the id of the process that a job of `steps` ran in."""
        return (job.folder / "process-0").read_text()


def check_each_job_has_one_start_then_progress_then_one_end(backend: Backend) -> None:
    for job in {event.job.id: event.job for event in backend.events}.values():
        first, *between, last = backend.list_events(job)
        assert isinstance(first, JobStarted), job.name
        assert all(isinstance(event, JobProgressed) for event in between), job.name
        assert isinstance(last, JobAnswered | JobFinished | JobFailed), job.name
        if job.name == "steps":
            told = [event.progress for event in between if isinstance(event, JobProgressed)]
            assert isinstance(last, JobFinished), last
            assert any(progress.phase == "train" for progress in told)
            assert [p.done for p in told if p.phase == "train"] == sorted(
                p.done for p in told if p.phase == "train"
            )


def check_each_failure_has_its_cause(backend: Backend) -> None:
    ends = {job.name: backend.list_events(job)[-1] for job in backend.jobs}
    causes = {name: end.cause for name, end in ends.items() if isinstance(end, JobFailed)}
    assert causes == {name: CAUSES[name] for name in backend.names if name in CAUSES}


def check_a_retry_is_the_next_to_begin(backend: Backend) -> None:
    wanted: list[str] = []
    for job in backend.jobs:
        wanted.append(job.id)
        if CAUSES.get(job.name) in RETRIED_CAUSES:
            wanted.append(f"{job.id}-2")
    begun = [event.job for event in backend.events if isinstance(event, JobStarted)]
    assert [job.id for job in begun if not job.is_scoring] == wanted
    for event in backend.events:
        if isinstance(event, JobFailed):
            retry_job = None if event.retry_job is None else event.retry_job.id
            assert retry_job == (f"{event.job.id}-2" if event.cause in RETRIED_CAUSES else None)


def check_answers_are_scored_by_a_job_of_their_own(backend: Backend) -> None:
    [job] = [job for job in backend.jobs if job.name == "answers"]
    [answered] = [event for event in backend.list_events(job) if isinstance(event, JobAnswered)]
    scoring = answered.scoring_job
    assert (scoring.id, scoring.answers) == (f"{job.id.split('-')[0]}-score-answers", job.folder)
    first, *_, last = backend.list_events(scoring)
    assert isinstance(first, JobStarted) and isinstance(last, JobFinished)
    order = [event for event in backend.events if event is answered or event is first]
    assert order == [answered, first]


def check_a_second_run_works(backend: Backend) -> None:
    events: list[JobEvent] = []
    job = backend.make_job(90, "steps")
    backend.executor.run([job], events.append)
    assert isinstance(events[0], JobStarted) and isinstance(events[-1], JobFinished), events
    backend.executor.run([], events.append)


def check_later_jobs_begin_when_they_are_known(backend: Backend) -> None:
    first, second = backend.make_job(93, "steps"), backend.make_job(94, "steps")
    events: list[JobEvent] = []
    to_come = [second]

    def more() -> list[Job] | None:
        if not any(isinstance(event, JobFinished) for event in events):
            return None
        given = to_come[:]
        to_come.clear()
        return given

    backend.executor.run([first], events.append, backend.retry, more)
    order = [event.job.id for event in events if isinstance(event, JobStarted | JobFinished)]
    assert order == [first.id, first.id, second.id, second.id]
    backend.later_jobs = first, second


def check_an_error_of_the_job_source_is_raised(backend: Backend) -> None:
    def more() -> list[Job] | None:
        raise OSError("no file says what comes")

    raised: Exception | None = None
    try:
        backend.executor.run([backend.make_job(71, "steps")], lambda event: None, None, more)
    except OSError as error:
        raised = error
    assert str(raised) == "no file says what comes"


def check_an_error_of_a_listener_is_raised(backend: Backend) -> None:
    for number, moment in ((70, JobStarted), (72, JobFinished)):
        heard: list[JobEvent] = []

        def full(event: JobEvent, moment: type = moment, heard: list[JobEvent] = heard) -> None:
            heard.append(event)
            if isinstance(event, moment):
                raise OSError("no space left on device")

        raised: Exception | None = None
        try:
            backend.executor.run([backend.make_job(number, "steps")], full)
        except OSError as error:
            raised = error
        assert str(raised) == "no space left on device", moment
        assert [type(event) for event in heard].count(moment) == 1, heard


def check_a_stopped_job_leaves_a_checkpoint(backend: Backend, leaves: bool) -> None:
    events: list[JobEvent] = []
    jobs = [backend.make_job(91, "waits"), backend.make_job(92, "steps")]

    def listen(event: JobEvent) -> None:
        events.append(event)
        if isinstance(event, JobProgressed):
            backend.stop.request()

    raised = False
    try:
        backend.executor.run(jobs, listen, backend.retry)
    except KeyboardInterrupt:
        raised = True
    assert raised
    assert {event.job.name for event in events} == {"waits"}  # nothing new begins
    [failed] = [event for event in events if isinstance(event, JobFailed)]
    assert (failed.cause, failed.retry_job) == ("stopped", None)
    assert failed.reason.startswith("stopped after step 1")
    assert (jobs[0].folder / "checkpoint").exists() == leaves


CHECKS: list[Callable[[Backend], None]] = [
    check_each_job_has_one_start_then_progress_then_one_end,
    check_each_failure_has_its_cause,
    check_a_retry_is_the_next_to_begin,
    check_answers_are_scored_by_a_job_of_their_own,
    check_an_error_of_a_listener_is_raised,
    check_a_second_run_works,
    check_later_jobs_begin_when_they_are_known,
    check_an_error_of_the_job_source_is_raised,
]
