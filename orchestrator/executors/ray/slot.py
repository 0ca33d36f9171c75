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
    LARGEST_SHARE,
    JobPayload,
    Outcome,
    TrialEnded,
    run_job,
)

#: The one key of a Tune trial's configuration.
PAYLOAD = "payload"
#: Beside it for several workers: the queue by which the first says where they are.
REPORTS = "reports"
#: The keys of a trial's reports: where the job is, and in the last one how it ended.
PROGRESS, OUTCOME = "progress", "outcome"
#: Before them for several workers: the placement group that they have.
PLACE = "place"
#: How far a training is, of 100: schedulers compare trainings of different lengths by it.
PERCENT = "percent"
#: Products that oneDNN keeps compiled, of each length of rows in bf16 on a CPU: by itself it keeps
#: 1,024, each of 0.3 to 0.6 MB, as long as the process lives.
_KEPT_PRODUCTS = 64


class SlotRetired(Exception):
    """A slot ends with its job, which failed, or holds too much memory. The job has reported."""


class JobFailed(Exception):
    """One of several workers cannot go on."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def run_slot(config: dict[str, Any]) -> None:
    """Run one job. This is Tune's trainable.

    Raises:
        SlotRetired: this process is not to be used again.
    """
    payload: JobPayload = config[PAYLOAD]
    outcome = run_here(payload) if payload.job.workers == 1 else run_workers(payload)
    tune.report({OUTCOME: outcome})
    if outcome.cause is not None:
        raise SlotRetired(outcome.reason)
    free_memory()
    held = memory_share()
    if held > LARGEST_SHARE:
        raise SlotRetired(f"it holds {100 * held:.0f} % of the machine's memory")


def run_here(payload: JobPayload) -> Outcome:
    """Run a job of one worker in this process, by Ray Train's local mode."""
    import_and_freeze("ray.train.torch")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from chip_core.data.encodings import ENCODINGS
    from chip_core.models.base_models import BASE_MODELS

    if not payload.job.config.engine.fresh_process:
        BASE_MODELS.enable()
        ENCODINGS.enable()
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KEPT_PRODUCTS))

    ends: list[Outcome] = []

    def train_loop_per_worker() -> None:
        # In local mode within Tune nothing of ray.train may be called (Ray 2.60).
        ends.append(run_job(payload, throttle(report_to_tune)))

    trainer = TorchTrainer(
        train_loop_per_worker,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name=payload.job.id, storage_path=payload.storage),
    )
    trainer.fit()  # whose result has no return value in older releases of Ray
    return ends[0]


def run_workers(payload: JobPayload) -> Outcome:
    """Run a job of several workers as a run of Ray Train, and pass on what the first reports.

    Not by Tune's TuneReportCallback: with it the slot's process takes the reports from a queue, and
    stands still for good where one is left there as the trial's function ends (Ray 2.60).
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(0.8 * payload.begin_within)
    reports = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={PAYLOAD: payload, REPORTS: reports},
        torch_config=TorchConfig(timeout_s=int(BARRIER_TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=payload.job.workers,
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
    ends: list[Outcome] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            ends.append(outcome_of(error, payload))
        else:
            ends.append(Outcome())

    # A thread that ends with the process, as it does where Tune ends the trial meanwhile.
    thread = threading.Thread(target=fit, name="train", daemon=True)
    thread.start()
    while thread.is_alive() or not reports.empty():
        with contextlib.suppress(Empty):
            tune.report(reports.get(timeout=REPORT_EVERY))
    return ends[0]


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run one of several workers.

    Raises:
        JobFailed: it cannot go on; the others wait for it until Train ends them.
    """
    from ray import train

    def send(progress: Progress) -> None:
        # Not `train.report`, which waits for all workers: not all of them score.
        config[REPORTS].put(metrics_of(progress))

    payload: JobPayload = config[PAYLOAD]
    first = train.get_context().get_world_rank() == 0
    if first:
        config[REPORTS].put({PLACE: get_current_placement_group()})
    outcome = run_job(payload, throttle(send) if first else lambda progress: None)
    if outcome.cause is not None:
        raise JobFailed(outcome)


def report_to_tune(progress: Progress) -> None:
    """Report where a job is to Tune.

    Raises:
        TrialEnded: Tune ends the trial.
    """
    try:
        tune.report(metrics_of(progress))
    except SystemExit:
        raise TrialEnded from None


def metrics_of(progress: Progress) -> dict[str, Any]:
    """Return progress as Tune reports it; a training's figures are there for schedulers too."""
    if progress.phase != "train":
        return {PROGRESS: progress}
    percent = 100 * progress.done / max(progress.total, 1)
    return {PROGRESS: progress, PERCENT: percent, **progress.figures}


def outcome_of(error: Exception, payload: JobPayload) -> Outcome:
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
        lost = [failure for failure in failures if not isinstance(failure, JobFailed)]
        if any(isinstance(failure, OutOfMemoryError) for failure in lost):
            reason = "the worker process died (its machine ran out of memory)"
            return Outcome(cause="memory", reason=reason, from_outside=True)
        if not lost:
            return next(failure.outcome for failure in failures if isinstance(failure, JobFailed))
        reason = "the worker process died (killed, out of memory, or crashed)"
        return Outcome(cause="worker_lost", reason=reason, from_outside=True)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in payload.resources.items())
    lines = str(cause).strip().splitlines() or [""]
    reason = f"Train could not run its workers ({wanted} each): {type(cause).__name__}: {lines[0]}"
    return Outcome(cause="worker_lost", reason=reason, from_outside=True)
