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
from orchestrator.executors.base import STOP_FILE, Job
from orchestrator.jobs.attempt import Cause, failure_cause, failure_reason, save_traceback

if TYPE_CHECKING:
    from orchestrator.storage.staging import StagingSpec

#: File in a job's folder with the stacks of its process, written when a hanging one is ended.
HANG_FILE = "hang.txt"
#: A process that holds more than this share of the machine's memory is not reused.
MAX_MEMORY_SHARE = 0.5

ProgressCallback = Callable[[Progress], None]


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
class JobOutcome:
    """How a job ended. Without a cause, it succeeded."""

    cause: Cause | None = None
    reason: str = ""
    from_outside: bool = False


def run_job(payload: JobPayload, report: ProgressCallback) -> JobOutcome:
    """Run a job in this process. Its exceptions are failures of the job."""
    job = replace(payload.job, folder=payload.job.folder.absolute())
    if payload.staging is None:
        return _run_in_folder(payload, job.folder, lambda told: job, report)
    try:
        with payload.staging.workspace(job.folder) as workspace:
            return _run_in_folder(
                payload, workspace.folder, lambda told: workspace.stage(job, told), report
            )
    except Exception as error:  # the job's files cannot be copied
        return JobOutcome(cause=failure_cause(error), reason=failure_reason(error))


def _run_in_folder(
    payload: JobPayload,
    folder: Path,
    stage: Callable[[ProgressCallback], Job],
    report: ProgressCallback,
) -> JobOutcome:
    """Run a job in its folder on this machine."""
    job: Job | None = None
    try:
        engine = payload.job.config.engine
        with Watchdog(
            folder / HANG_FILE, begin_within=payload.begin_within, stall_after=engine.stall_after
        ) as watchdog:
            report_progress = watchdog.watching(report)
            job = stage(report_progress)
            module, _, function = payload.entry.partition(":")
            getattr(importlib.import_module(module), function)(
                job, report_progress, (folder / STOP_FILE).exists
            )
    except TrialEndedByTune:
        sys.exit(0)  # as Tune expects
    except BaseException as error:  # SystemExit too
        if job is not None:
            save_traceback(job)
        return JobOutcome(cause=failure_cause(error), reason=failure_reason(error))
    return JobOutcome()


class TrialEndedByTune(BaseException):
    """Tune ended the trial: early stopping cut it, or all trials should end."""
