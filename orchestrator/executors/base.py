"""What an executor is: it runs jobs and tells what happens."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from chip_core.config import TrialConfig
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
from chip_core.places import Places
from chip_core.reference_cache.spec import AvailableCaches, BuildShard
from chip_core.results import Progress, TrialResult

#: Where a failed job's traceback is, in its folder.
TRACEBACK = "traceback.txt"
#: There while a job is to end at its next step or batch, in its folder.
STOP = "stop"
#: The phase in which files that a job needs are copied to its machine.
COPYING = "copy from the storage"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt at a trial, or a share of a reference pass: all that a worker needs."""

    id: str  # short, unique in a run; safe in file names
    name: str  # for people
    config: TrialConfig  # its benchmarks are those still to be scored
    folder: Path  # the attempt's own
    untrained: bool = False  # score the model as it is
    trained_model: Path | None = None  # score this model, trained by an earlier attempt
    resume_from: Path | None = None  # an earlier attempt's, with a model or checkpoints
    places: Places = Places()  # where benchmarks' data and judges' replies lie
    earlier: tuple[Path, ...] = ()  # earlier attempts' folders, whose answers can be taken over
    offered: AvailableCaches | None = None  # the stores of reference passes that it may read
    part: BuildShard | None = None  # make this share of a reference pass, and nothing else
    may_be_cut: bool = False  # whether early stopping may end its training
    notes: tuple[str, ...] = ()  # what is to be said of this attempt
    #: brings what the first worker left in `folder` to the machines of all, who call it together
    share: Callable[[], None] | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a training that is to be made, or gone on with."""
        return not self.untrained and self.trained_model is None and self.part is None

    @property
    def workers(self) -> int:
        """How many processes share it: those of a training; scoring is one's work."""
        return self.config.engine.workers_per_trial if self.trains else 1


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


Event = Started | Progressed | Finished | Failed | Cut


class Executor(Protocol):
    """Runs jobs. Every job gets one Started, then one Finished, Failed or Cut; the others go on.

    A job that is tried again is another job: Failed names it, and it is the next to begin.
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
) -> TrialResult:
    """Run one job in this process; it ends at its next step or batch where `stop` says so."""
    began, began_cpu = time.perf_counter(), cpu_seconds()
    # They take torch and more, which only a worker needs.
    if job.part is not None:
        from chip_core.reference_cache.build import run_shard
        from chip_core.trial import stopped_by

        told = stopped_by(stop, report)
        return run_shard(job.part, job.config, folder=job.folder, report=told)
    from chip_core.trial import run_trial

    return run_trial(
        job.config,
        folder=job.folder,
        report=report,
        untrained=job.untrained,
        trained_model=job.trained_model,
        resume_from=job.resume_from,
        began=began,
        began_cpu=began_cpu,
        places=job.places,
        earlier=job.earlier,
        offered=job.offered,
        stop=stop,
        notes=job.notes,
        share=job.share or (lambda: None),
    )


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
