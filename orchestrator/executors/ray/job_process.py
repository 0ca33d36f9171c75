"""How a process runs one job: watched, and whatever the job raises is the job's own failure."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from chip_core.results import Progress
from orchestrator.executors.base import STOP, Cause, Job, cause_of, keep_traceback, reason_of

if TYPE_CHECKING:
    from orchestrator.storage.staging import StagingSpec

#: Where a job hung, in its folder: the stacks of its process, which was ended.
HANG = "hang.txt"
#: Seconds between two reports of one phase.
REPORT_EVERY = 1.0
#: A process that holds more memory than this share of the machine is not used again.
LARGEST_SHARE = 0.5

Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class JobPayload:
    """One job as it travels to its slot."""

    job: Job
    entry: str  # "module:function", called with the job, a report function and a stop function
    resources: dict[str, float]  # each worker's, in Ray's names
    placement: str  # Ray's strategy for the workers of one job
    begin_within: float  # seconds until its first progress, and that its workers wait for a place
    storage: str  # Train's own files
    staging: StagingSpec | None  # where workers do not see the job's folder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; no cause: well."""

    cause: Cause | None = None
    reason: str = ""
    from_outside: bool = False


def run_job(payload: JobPayload, report: Report) -> Outcome:
    """Run a job in this process; whatever it raises is its own failure."""
    job = replace(payload.job, folder=payload.job.folder.absolute())
    if payload.staging is None:
        return _run(payload, job.folder, lambda told: job, report)
    try:
        with payload.staging.workspace(job.folder) as workspace:
            return _run(
                payload, workspace.folder, lambda told: workspace.brought(job, told), report
            )
    except Exception as error:  # what the job left cannot be copied
        return Outcome(cause=cause_of(error), reason=reason_of(error))


def _run(
    payload: JobPayload, folder: Path, staged: Callable[[Report], Job], report: Report
) -> Outcome:
    """Run a job in the folder that it has on this machine."""
    job: Job | None = None
    try:
        with Watchdog(payload, folder) as watchdog:
            told = watchdog.watching(report)
            job = staged(told)
            module, _, function = payload.entry.partition(":")
            getattr(importlib.import_module(module), function)(job, told, (folder / STOP).exists)
    except TrialEnded:
        sys.exit(0)  # as Tune would have it
    except BaseException as error:  # SystemExit too
        if job is not None:
            keep_traceback(job)
        return Outcome(cause=cause_of(error), reason=reason_of(error))
    return Outcome()


class TrialEnded(BaseException):
    """Tune ended the trial: it falls behind the others, or all are to end."""


def throttled(send: Report, clock: Callable[[], float] = time.monotonic) -> Report:
    """Return `send` for the first of each phase, and from then on every `REPORT_EVERY` seconds."""
    phase: str | None = None
    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal phase, due
        if progress.phase != phase or clock() >= due:
            send(progress)
            phase, due = progress.phase, clock() + REPORT_EVERY

    return report


class Watchdog:
    """End this process where its job makes no progress, and leave where it hung.

    By `faulthandler`, which waits in a thread that needs no interpreter: it also ends a process
    whose interpreter is held by a call that never returns.
    """

    def __init__(self, payload: JobPayload, folder: Path) -> None:
        """Nothing is watched yet."""
        self._first, self._later = payload.begin_within, payload.job.config.engine.stall_after
        self._path = folder / HANG

    def __enter__(self) -> Watchdog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self._arm(self._first)
        return self

    def __exit__(self, *raised: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def watching(self, report: Report) -> Report:
        """Return `report`, which shows that the job goes on; a wait for Tune is no hanging job."""

        def watched(progress: Progress) -> None:
            faulthandler.cancel_dump_traceback_later()
            report(progress)
            self._arm(self._later)

        return watched

    def _arm(self, seconds: float | None) -> None:
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)


def memory_share() -> float:
    """Return the share of the machine's memory that this process holds."""
    return float(psutil.Process().memory_info().rss / psutil.virtual_memory().total)
