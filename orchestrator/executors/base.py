"""What an executor is: it runs jobs and tells what happens."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from chip_core.errors import (
    MemoryFullError,
    StoppedError,
    StorageError,
    TrialError,
    UserError,
    printable,
)
from chip_core.files import is_full
from chip_core.machine import cpu_seconds
from chip_core.results import AnsweredTrial, Progress, TrialResult

# The storage, which is below executors, needs them too.
from orchestrator.job import COPYING as COPYING
from orchestrator.job import STOP as STOP
from orchestrator.job import Job as Job

#: Where a failed job's traceback is, in its folder.
TRACEBACK = "traceback.txt"


#: What ended an attempt: its own (a wrong configuration, a loss that is no number, a bug), a worker
#: or node that was lost, memory that ran out, a full disk, a wish to stop.
Cause = Literal["own", "lost", "memory", "disk", "stopped"]


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
    cause: Cause = "own"
    from_outside: bool = False  # the worker did not say so itself: it was found dead
    again: Job | None = None  # the trial's next attempt, which this run makes


#: Says how a job that failed is tried again, as another job; None where it is not.
Again = Callable[[Failed], Job | None]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Early stopping ended a job's training; it is not scored."""

    job: Job
    reason: str


Event = Started | Progressed | Answered | Finished | Failed | Cut


class Executor(Protocol):
    """Runs jobs. Each gets one Started, then one Answered, Finished, Failed or Cut; others go on.

    A trial's next step is another job, which Answered names, and so is its next attempt, which
    Failed names: it is the next of its kind to begin.
    """

    def opened(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """Be ready for several runs of jobs no larger than these; a run alone needs it not."""

    def slots(self, job: Job) -> int:
        """Return how many jobs as large as this run at once; within `opened`."""

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        again: Again | None = None,
    ) -> None:
        """Run all jobs and return when they have ended.

        `on_event` and `again` are called in the caller's thread or another, never from two at once.

        Raises:
            KeyboardInterrupt: the user stopped it; jobs that have not ended were stopped.
        """


def execute(
    job: Job, report: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False
) -> TrialResult | AnsweredTrial:
    """Run one job in this process; it ends at its next step or batch where `stop` says so.

    Returns:
        what the trial came to; its answers, where they are scored by a job of their own
        (`Job.scoring`).
    """
    began, began_cpu = time.perf_counter(), cpu_seconds()
    # They take torch and more, which only a worker needs.
    if job.part is not None:
        from chip_core.phases import stopped_by
        from chip_core.reference_cache.build import run_shard

        told = stopped_by(stop, report)
        return run_shard(job.part, job.config, folder=job.folder, report=told)
    from chip_core.trial_context import TrialContext
    from chip_core.trial_scoring import score_trial

    if job.answers is not None:
        context = TrialContext(
            folder=job.folder,
            report=report,
            stop=stop,
            places=job.places,
            began=began,
            began_cpu=began_cpu,
        )
        return score_trial(job.config, context, answers=job.answers)
    from chip_core.trial import answer_trial
    from chip_core.workers import current

    context = TrialContext(
        folder=job.folder,
        report=report,
        untrained=job.untrained,
        trained_model=job.trained_model,
        resume_from=job.resume_from,
        began=began,
        began_cpu=began_cpu,
        places=job.places,
        earlier=job.earlier,
        caches=job.offered,
        stop=stop,
        notes=job.notes,
        share=job.share or (lambda: None),
    )
    answered = answer_trial(job.config, context)
    if answered.answers:
        return answered
    scoring = TrialContext(folder=job.folder, places=job.places)
    return current().broadcast_from_rank0(lambda: score_trial(job.config, scoring))


def cause_of(error: BaseException) -> Cause:
    """Return what ended an attempt, of what it raised."""
    if isinstance(error, StoppedError):
        return "stopped"
    if isinstance(error, MemoryFullError | MemoryError):
        return "memory"
    if is_full(error):
        return "disk"
    return "lost" if isinstance(error, StorageError) else "own"


def reason_of(error: BaseException) -> str:
    """Return an exception as a trial's reason, in one line."""
    first = printable((str(error).strip().splitlines() or [""])[0])
    if isinstance(error, (TrialError, UserError)) and first:
        return first
    if is_full(error):
        return f"a disk is full ({first}): free some space and run the study again"
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def keep_traceback(job: Job) -> None:
    """Write the exception that is being handled, whole, to the job's folder."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return  # the disk may be what failed; the reason says so
