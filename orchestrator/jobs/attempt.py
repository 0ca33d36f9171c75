"""Run one attempt at a job in this process, and determine what ended it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Literal

from chip_core.results import AnsweredTrial, Progress, TrialResult
from chip_core.utils.errors import (
    MemoryFullError,
    StoppedError,
    StorageError,
    TrialError,
    UserError,
    printable,
)
from chip_core.utils.files import is_disk_full
from chip_core.utils.machine import cpu_seconds, import_and_freeze
from orchestrator.jobs.job import Job

#: File with a failed job's traceback, in its folder.
TRACEBACK_FILE = "traceback.txt"

#: What ended an attempt: its own error (a wrong configuration, a loss that is not finite, a bug), a
#: lost worker or node, lack of memory, a full disk, a stop request.
Cause = Literal["trial_error", "worker_lost", "memory", "disk", "stopped"]


def execute_job(
    job: Job, report: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False
) -> TrialResult | AnsweredTrial:
    """Run one job in this process. It ends at its next step or batch if `stop` returns true.

    Returns:
        the trial's result, or its answers if a separate job scores them (`Job.scoring`).
    """
    start_time, start_cpu_seconds = time.perf_counter(), cpu_seconds()
    # Imported here, since they import torch and more, which only a worker needs. A process that
    # builds caches trains later on.
    if job.answers is None:
        import_and_freeze("chip_core.reference_cache.build", "chip_core.trial")
    if job.shard is not None:
        from chip_core.reference_cache.build import run_shard
        from chip_core.trial_context import stop_on_request

        report_progress = stop_on_request(stop, report)
        return run_shard(job.shard, job.config, folder=job.folder, report=report_progress)
    import_and_freeze("chip_core.trial_scoring")
    from chip_core.trial_context import TrialContext
    from chip_core.trial_scoring import score_trial

    if job.answers is not None:
        context = TrialContext(
            folder=job.folder,
            report=report,
            stop=stop,
            places=job.data_paths,
            began=start_time,
            began_cpu=start_cpu_seconds,
        )
        return score_trial(job.config, context, answers=job.answers)
    from chip_core.evaluation.generators.delivery import remove_served_files
    from chip_core.trial import answer_trial
    from chip_core.utils.workers import current_workers

    for earlier in job.earlier_attempts:
        remove_served_files(earlier)
    context = TrialContext(
        folder=job.folder,
        report=report,
        untrained=job.untrained,
        trained_model=job.trained_model,
        resume_from=job.resume_from,
        began=start_time,
        began_cpu=start_cpu_seconds,
        places=job.data_paths,
        earlier=job.earlier_attempts,
        caches=job.caches,
        stop=stop,
        server=job.server,
        notes=job.notes,
        share=job.share_files or (lambda: None),
    )
    answered_trial = answer_trial(job.config, context)
    if answered_trial.answers:
        return answered_trial
    scoring_context = TrialContext(folder=job.folder, places=job.data_paths)
    return current_workers().broadcast_from_rank0(lambda: score_trial(job.config, scoring_context))


def failure_cause(error: BaseException) -> Cause:
    """Return the cause that an exception stands for."""
    if isinstance(error, StoppedError):
        return "stopped"
    if isinstance(error, MemoryFullError | MemoryError):
        return "memory"
    if is_disk_full(error):
        return "disk"
    return "worker_lost" if isinstance(error, StorageError) else "trial_error"


def failure_reason(error: BaseException) -> str:
    """Return the reason of a failed trial from its exception, in one line."""
    first_line = printable((str(error).strip().splitlines() or [""])[0])
    if isinstance(error, (TrialError, UserError)) and first_line:
        return first_line
    if is_disk_full(error):
        return f"a disk is full ({first_line}): free some space and run the study again"
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def save_traceback(job: Job) -> None:
    """Write the traceback of the exception being handled to the job's folder."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / TRACEBACK_FILE).write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return  # the disk may be the cause, which the reason states
