"""A slot: the process of one Tune trial, which runs one job after another.

A job of one worker runs in the slot itself, by Ray Train's local mode, so that the next job reuses
imports, the device's context and the base model. A job of several workers is a separate
`TorchTrainer`, for which the slot waits.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.util import get_current_placement_group
from ray.util.queue import Empty, Queue

from chip_core.results import Progress
from chip_core.trial_context import REPORT_EVERY, throttle
from chip_core.utils.machine import free_memory, import_and_freeze, memory_share
from chip_core.utils.workers import BARRIER_TIMEOUT
from orchestrator.executors.ray.job_process import (
    MAX_MEMORY_SHARE,
    JobOutcome,
    JobPayload,
    TrialEndedByTune,
    run_job,
)

#: The one key of a Tune trial's configuration.
PAYLOAD_KEY = "payload"
#: Also there for several workers: the queue in which the first one reports their progress.
REPORTS_KEY = "reports"
#: The keys of a trial's reports: the job's progress, and in the last report how it ended.
PROGRESS_KEY, OUTCOME_KEY = "progress", "outcome"
#: Reported before them for several workers: their placement group.
PLACEMENT_GROUP_KEY = "place"
#: Progress of a training in percent, by which schedulers compare trainings of different lengths.
PERCENT_KEY = "percent"
#: Number of compiled matrix products that oneDNN keeps, one per length of rows in bf16 on a CPU.
#: Its default is 1,024, each of 0.3 to 0.6 MB, as long as the process lives.
_PRIMITIVE_CACHE_CAPACITY = 64


class SlotRetired(Exception):
    """The slot ends: its job failed, or it holds too much memory. The job has reported."""


class WorkerFailed(Exception):
    """One of several workers cannot continue."""

    def __init__(self, outcome: JobOutcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def run_slot(config: dict[str, Any]) -> None:
    """Run one job. This is Tune's trainable.

    Raises:
        SlotRetired: this process must not be reused.
    """
    payload: JobPayload = config[PAYLOAD_KEY]
    outcome = run_in_slot(payload) if payload.job.num_workers == 1 else run_workers(payload)
    tune.report({OUTCOME_KEY: outcome})
    if outcome.cause is not None:
        raise SlotRetired(outcome.reason)
    free_memory()
    share = memory_share()
    if share > MAX_MEMORY_SHARE:
        raise SlotRetired(f"it holds {100 * share:.0f} % of the machine's memory")


def run_in_slot(payload: JobPayload) -> JobOutcome:
    """Run a job of one worker in this process, by Ray Train's local mode."""
    import_and_freeze("ray.train.torch")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from chip_core.data.encodings import ENCODINGS
    from chip_core.models.base_models import BASE_MODELS

    if not payload.job.config.engine.fresh_process:
        BASE_MODELS.enable()
        ENCODINGS.enable()
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PRIMITIVE_CACHE_CAPACITY))

    outcomes: list[JobOutcome] = []

    def train_loop_per_worker() -> None:
        # In local mode within Tune nothing of ray.train may be called (Ray 2.60).
        outcomes.append(run_job(payload, throttle(report_to_tune)))

    trainer = TorchTrainer(
        train_loop_per_worker,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name=payload.job.id, storage_path=payload.storage),
    )
    trainer.fit()  # whose result has no return value in older releases of Ray
    return outcomes[0]


def run_workers(payload: JobPayload) -> JobOutcome:
    """Run a job of several workers as a run of Ray Train, and pass on what the first reports.

    Tune's TuneReportCallback is not used: with it, the slot's process takes the reports from a
    queue, and hangs forever if one is left there when the trial's function ends (Ray 2.60).
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(0.8 * payload.begin_within)
    reports = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={PAYLOAD_KEY: payload, REPORTS_KEY: reports},
        torch_config=TorchConfig(timeout_s=int(BARRIER_TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=payload.job.num_workers,
            use_gpu=payload.resources.get("GPU", 0) > 0,
            resources_per_worker=payload.resources,
            placement_strategy=payload.placement,
        ),
        run_config=RunConfig(
            name=payload.job.id,
            storage_path=payload.storage,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    outcomes: list[JobOutcome] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            outcomes.append(failure_outcome(error, payload))
        else:
            outcomes.append(JobOutcome())

    # A daemon thread, so that the process can end if Tune ends the trial in the meantime.
    thread = threading.Thread(target=fit, name="train", daemon=True)
    thread.start()
    while thread.is_alive() or not reports.empty():
        with contextlib.suppress(Empty):
            tune.report(reports.get(timeout=REPORT_EVERY))
    return outcomes[0]


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run one of several workers.

    Raises:
        WorkerFailed: it cannot continue; the others wait for it until Train ends them.
    """
    from ray import train

    def send_progress(progress: Progress) -> None:
        # Not `train.report`, which waits for all workers: not all of them score.
        config[REPORTS_KEY].put(progress_metrics(progress))

    payload: JobPayload = config[PAYLOAD_KEY]
    is_first = train.get_context().get_world_rank() == 0
    if is_first:
        config[REPORTS_KEY].put({PLACEMENT_GROUP_KEY: get_current_placement_group()})
    outcome = run_job(payload, throttle(send_progress) if is_first else lambda progress: None)
    if outcome.cause is not None:
        raise WorkerFailed(outcome)


def report_to_tune(progress: Progress) -> None:
    """Report a job's progress to Tune.

    Raises:
        TrialEndedByTune: Tune ends the trial.
    """
    try:
        tune.report(progress_metrics(progress))
    except SystemExit:
        raise TrialEndedByTune from None


def progress_metrics(progress: Progress) -> dict[str, Any]:
    """Return progress in Tune's format, with a training's figures for schedulers."""
    if progress.phase != "train":
        return {PROGRESS_KEY: progress}
    percent = 100 * progress.done / max(progress.total, 1)
    return {PROGRESS_KEY: progress, PERCENT_KEY: percent, **progress.figures}


def failure_outcome(error: Exception, payload: JobPayload) -> JobOutcome:
    """Return how a run of Train failed.

    Of several workers' failures, return the one that caused the others: a dying worker breaks the
    connections of those that wait for it, and a worker that reports its failure is believed.
    """
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        # What a worker's health check found is wrapped.
        failures = [
            getattr(failure, "health_check_failure", failure)
            for failure in error.worker_failures.values()
        ]
        dead_workers = [failure for failure in failures if not isinstance(failure, WorkerFailed)]
        if any(isinstance(failure, OutOfMemoryError) for failure in dead_workers):
            reason = "the worker process died (its machine ran out of memory)"
            return JobOutcome(cause="memory", reason=reason, from_outside=True)
        if not dead_workers:
            return next(
                failure.outcome for failure in failures if isinstance(failure, WorkerFailed)
            )
        reason = "the worker process died (killed, out of memory, or crashed)"
        return JobOutcome(cause="worker_lost", reason=reason, from_outside=True)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    resources_text = ", ".join(f"{amount:g} {name}" for name, amount in payload.resources.items())
    lines = str(cause).strip().splitlines() or [""]
    reason = (
        f"Train could not run its workers ({resources_text} each): {type(cause).__name__}: "
        f"{lines[0]}"
    )
    return JobOutcome(cause="worker_lost", reason=reason, from_outside=True)
