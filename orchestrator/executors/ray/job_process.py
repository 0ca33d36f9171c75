"""Run one job in a process, with a watchdog. Its exceptions are failures of the job."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chip_core.results import Progress
from chip_core.watchdog import Watchdog
from orchestrator.executors.base import STOP, Job
from orchestrator.jobs.attempt import Cause, cause_of, keep_traceback, reason_of

if TYPE_CHECKING:
    from orchestrator.storage.staging import StagingSpec

#: File in a job's folder with the stacks of its process, written when a hanging one is ended.
HANG = "hang.txt"
#: A process that holds more than this share of the machine's memory is not reused.
LARGEST_SHARE = 0.5

Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class JobPayload:
    """A job and what its slot needs to run it."""

    job: Job
    entry: str  # "module:function", called with the job, a report function and a stop function
    resources: dict[str, float]  # per worker, with Ray's names
    placement: str  # Ray's placement strategy for the workers
    begin_within: float  # seconds until its first progress, or its workers' placement
    storage: str  # folder of Train's files
    staging: StagingSpec | None  # if workers do not see the job's folder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended. Without a cause, it succeeded."""

    cause: Cause | None = None
    reason: str = ""
    from_outside: bool = False


def run_job(payload: JobPayload, report: Report) -> Outcome:
    """Run a job in this process. Its exceptions are failures of the job."""
    job = replace(payload.job, folder=payload.job.folder.absolute())
    if payload.staging is None:
        return _run(payload, job.folder, lambda told: job, report)
    try:
        with payload.staging.workspace(job.folder) as workspace:
            return _run(
                payload, workspace.folder, lambda told: workspace.brought(job, told), report
            )
    except Exception as error:  # the job's files cannot be copied
        return Outcome(cause=cause_of(error), reason=reason_of(error))


def _run(
    payload: JobPayload, folder: Path, staged: Callable[[Report], Job], report: Report
) -> Outcome:
    """Run a job in its folder on this machine."""
    job: Job | None = None
    try:
        engine = payload.job.config.engine
        with Watchdog(
            folder / HANG, begin_within=payload.begin_within, stall_after=engine.stall_after
        ) as watchdog:
            told = watchdog.watching(report)
            job = staged(told)
            module, _, function = payload.entry.partition(":")
            getattr(importlib.import_module(module), function)(job, told, (folder / STOP).exists)
    except TrialEnded:
        sys.exit(0)  # as Tune expects
    except BaseException as error:  # SystemExit too
        if job is not None:
            keep_traceback(job)
        return Outcome(cause=cause_of(error), reason=reason_of(error))
    return Outcome()


class TrialEnded(BaseException):
    """Tune ended the trial: early stopping cut it, or all trials should end."""
