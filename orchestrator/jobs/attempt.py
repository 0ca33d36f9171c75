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
TRACEBACK = "traceback.txt"

#: What ended an attempt: its own error (a wrong configuration, a loss that is not finite, a bug), a
#: lost worker or node, lack of memory, a full disk, a stop request.
Cause = Literal["trial_error", "worker_lost", "memory", "disk", "stopped"]


def execute(
    job: Job, report: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False
) -> TrialResult | AnsweredTrial:
    """Run one job in this process. It ends at its next step or batch if `stop` returns true.

    Returns:
        the trial's result, or its answers if a separate job scores them (`Job.scoring`).
    """
    began, began_cpu = time.perf_counter(), cpu_seconds()
    # Imported here, since they import torch and more, which only a worker needs. A process that
    # builds caches trains later on.
    if job.answers is None:
        import_and_freeze("chip_core.reference_cache.build", "chip_core.trial")
    if job.shard is not None:
        from chip_core.reference_cache.build import run_shard
        from chip_core.trial_context import stop_on_request

        told = stop_on_request(stop, report)
        return run_shard(job.shard, job.config, folder=job.folder, report=told)
    import_and_freeze("chip_core.trial_scoring")
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
    from chip_core.evaluation.generators.delivery import remove_served_files
    from chip_core.trial import answer_trial
    from chip_core.utils.workers import current_workers

    for earlier in job.earlier:
        remove_served_files(earlier)
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
        caches=job.caches,
        stop=stop,
        server=job.server,
        notes=job.notes,
        share=job.share or (lambda: None),
    )
    answered = answer_trial(job.config, context)
    if answered.answers:
        return answered
    scoring = TrialContext(folder=job.folder, places=job.places)
    return current_workers().broadcast_from_rank0(lambda: score_trial(job.config, scoring))


def cause_of(error: BaseException) -> Cause:
    """Return the cause that an exception stands for."""
    if isinstance(error, StoppedError):
        return "stopped"
    if isinstance(error, MemoryFullError | MemoryError):
        return "memory"
    if is_disk_full(error):
        return "disk"
    return "worker_lost" if isinstance(error, StorageError) else "trial_error"


def reason_of(error: BaseException) -> str:
    """Return the reason of a failed trial from its exception, in one line."""
    first = printable((str(error).strip().splitlines() or [""])[0])
    if isinstance(error, (TrialError, UserError)) and first:
        return first
    if is_disk_full(error):
        return f"a disk is full ({first}): free some space and run the study again"
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def keep_traceback(job: Job) -> None:
    """Write the traceback of the exception being handled to the job's folder."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return  # the disk may be the cause, which the reason states
