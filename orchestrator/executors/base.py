"""The interface of an executor, which runs jobs and reports events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chip_core.results import AnsweredTrial, Progress, TrialResult
from orchestrator.jobs.attempt import Cause

# The storage, which is below executors, needs them too.
from orchestrator.jobs.job import COPYING_PHASE as COPYING_PHASE
from orchestrator.jobs.job import STOP_FILE as STOP_FILE
from orchestrator.jobs.job import Job as Job
from orchestrator.jobs.job import StopRequest
from orchestrator.storage.remote import RemoteStorage
from orchestrator.study.early_stopping import EarlyStopping


@dataclass(frozen=True, kw_only=True)
class JobStarted:
    """A job has started."""

    job: Job


@dataclass(frozen=True, kw_only=True)
class JobProgressed:
    """The progress of a running job."""

    job: Job
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class JobAnswered:
    """A job has succeeded, and its answers are still to be scored."""

    job: Job
    answered_trial: AnsweredTrial
    scoring_job: Job  # the trial's next step, in this run


@dataclass(frozen=True, kw_only=True)
class JobFinished:
    """A job has succeeded. Its folder has all results."""

    job: Job
    result: TrialResult


@dataclass(frozen=True, kw_only=True)
class JobFailed:
    """A job has failed or was stopped."""

    job: Job
    reason: str
    cause: Cause = "trial_error"
    from_outside: bool = False  # not reported by the worker, which was found dead
    retry_job: Job | None = None  # the trial's next attempt, in this run


#: Returns the job that retries a failed one, or None.
RetryPolicy = Callable[[JobFailed], Job | None]

#: Returns further jobs. Called whenever no job is left to start. None: not known before a running
#: job has ended; no jobs: there are no more.
JobSource = Callable[[], Sequence[Job] | None]


@dataclass(frozen=True, kw_only=True)
class JobStoppedEarly:
    """Early stopping ended a job's training. It is not scored."""

    job: Job
    reason: str


JobEvent = JobStarted | JobProgressed | JobAnswered | JobFinished | JobFailed | JobStoppedEarly


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """The settings of a study's executor."""

    workdir: Path
    stop: StopRequest  # checked while jobs run
    remote: RemoteStorage | None = None  # storage for the jobs' files, if not the work directory
    address: str | None = None  # of a running Ray cluster
    max_concurrent: int | None = None  # jobs at once; None: as many as fit
    early_stopping: EarlyStopping | None = None  # rule that cuts `can_stop_early` jobs


class Executor(Protocol):
    """Runs jobs. Each has one `JobStarted` and one event that ends it; others continue.

    A trial's next step, named by `JobAnswered`, and its next attempt, named by `JobFailed`, are
    further jobs. They are the next of their kind to start.
    """

    def open(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """Stay ready for several runs of jobs no larger than these; optional for a single run."""

    def count_slots(self, job: Job) -> int:
        """Return how many jobs of this size run at once. Call it within `open`."""

    def reserve_gpus(self, gpus: int) -> AbstractContextManager[Sequence[str]]:
        """Reserve GPUs of this machine for a server that all jobs use. Call it within `open`.

        It yields the GPUs in the format of CUDA_VISIBLE_DEVICES; none if the jobs use no GPU.

        Raises:
            UserError: jobs run on other machines, too, or there are not enough GPUs.
        """

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        fetch_jobs: JobSource | None = None,
    ) -> None:
        """Run all jobs and those that `fetch_jobs` adds, and return when they have ended.

        `on_event`, `retry` and `fetch_jobs` are called in the caller's thread or another, never
        concurrently.

        Raises:
            KeyboardInterrupt: the user stopped the run; unfinished jobs were stopped.
        """
