"""What an executor is: it runs jobs and tells what happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chip_core.results import AnsweredTrial, Progress, TrialResult
from orchestrator.jobs.attempt import Cause

# The storage, which is below executors, needs them too.
from orchestrator.jobs.job import COPYING as COPYING
from orchestrator.jobs.job import STOP as STOP
from orchestrator.jobs.job import Job as Job
from orchestrator.jobs.stopping import Stop
from orchestrator.storage.remote import Remote
from orchestrator.study.early_stopping import EarlyStopping


@dataclass(frozen=True, kw_only=True)
class Started:
    """A job has begun."""

    job: Job


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Where a running job is."""

    job: Job
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A job has ended well, and the answers that it left are still to be scored."""

    job: Job
    answered: AnsweredTrial
    scoring: Job  # the trial's next step, which this run makes


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job has ended well; its folder holds everything."""

    job: Job
    result: TrialResult


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A job could not go on."""

    job: Job
    reason: str
    cause: Cause = "trial_error"
    from_outside: bool = False  # the worker did not say so itself: it was found dead
    retry: Job | None = None  # the trial's next attempt, which this run makes


#: Says how a job that failed is tried again, as another job; None where it is not.
Retry = Callable[[Failed], Job | None]

#: Says what else there is to run. Asked whenever no job is left to begin: None where that is not
#: known before one that runs has ended, no jobs where nothing else is to come.
More = Callable[[], Sequence[Job] | None]


@dataclass(frozen=True, kw_only=True)
class EarlyStopped:
    """Early stopping ended a job's training; it is not scored."""

    job: Job
    reason: str


Event = Started | Progressed | Answered | Finished | Failed | EarlyStopped


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """What a study's executor is made of."""

    workdir: Path
    stop: Stop  # looked at while jobs run
    remote: Remote | None = None  # by which jobs have and leave files, if not the work directory
    address: str | None = None  # of a running Ray cluster
    max_concurrent: int | None = None  # jobs at once; None: as many as fit
    early_stopping: EarlyStopping | None = None  # by what trainings are cut that may be


class Executor(Protocol):
    """Runs jobs. Each gets one Started, then one event that ends it; others go on.

    A trial's next step is another job, which Answered names, and so is its next attempt, which
    Failed names: it is the next of its kind to begin.
    """

    def opened(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """Be ready for several runs of jobs no larger than these; a run alone needs it not."""

    def slots(self, job: Job) -> int:
        """Return how many jobs as large as this run at once; within `opened`."""

    def reserved(self, gpus: int) -> AbstractContextManager[Sequence[str]]:
        """Keep GPUs of this machine from the jobs, for a server that all of them ask.

        Within `opened`. Yields the GPUs as CUDA_VISIBLE_DEVICES names them; none where jobs
        compute on none.

        Raises:
            UserError: jobs run elsewhere too, or there are not enough.
        """

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        retry: Retry | None = None,
        more: More | None = None,
    ) -> None:
        """Run all jobs, and those that `more` adds to them; return when they have ended.

        `on_event`, `retry` and `more` are called in the caller's thread or another, never from two
        at once.

        Raises:
            KeyboardInterrupt: the user stopped it; jobs that have not ended were stopped.
        """
