"""A slot: the process of one Tune trial, which runs one job after another.

A job of one worker runs in the slot itself, by Ray Train's local mode: the next job finds imports,
the device's context and the base model as this one left them. A job of several workers is a
`TorchTrainer` of its own, and the slot waits for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.train import UserCallback
from ray.util.queue import Empty, Queue

from chip_core.machine import free_memory
from chip_core.results import Progress
from chip_core.workers import PATIENCE
from orchestrator.executors.base import (
    STOP,
    Cause,
    Job,
    cause_of,
    keep_traceback,
    reason_of,
)

if TYPE_CHECKING:
    from orchestrator.executors.elsewhere import Elsewhere

#: The one key of a Tune trial's configuration.
PAYLOAD = "payload"
#: Keys of a trial's last report: how the job ended.
OUTCOME, REASON, CAUSE, FROM_OUTSIDE = "outcome", "reason", "cause", "from_outside"
#: How far a training is, of 100: schedulers compare trainings of different lengths by it.
PERCENT = "percent"
#: Where a job hung, in its folder: the stacks of its process, which was ended.
HANG = "hang.txt"
#: Seconds between two reports of one phase.
REPORT_EVERY = 1.0
#: Reports of a training of several workers, who must all make the same ones.
_SHARED_REPORTS = 200
#: Products that oneDNN keeps compiled, of each length of rows in bf16 on a CPU: by itself it keeps
#: 1,024, each of 0.3 to 0.6 MB, as long as the process lives.
_KEPT_PRODUCTS = 64
#: A slot that holds more memory than this share of the machine is not used again.
_LARGEST_SHARE = 0.5

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
    staging: Elsewhere | None  # where workers do not see the job's folder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; no cause: well."""

    cause: Cause | None = None
    reason: str = ""
    from_outside: bool = False

    def metrics(self) -> dict[str, Any]:
        """Return it as Tune reports it."""
        return {
            OUTCOME: "finished" if self.cause is None else "failed",
            CAUSE: self.cause,
            REASON: self.reason,
            FROM_OUTSIDE: self.from_outside,
        }


class SlotRetired(Exception):
    """A slot ends with its job: it failed, or holds too much memory. Its job's end is told."""


class JobFailed(Exception):
    """One of several workers cannot go on."""

    def __init__(self, cause: Cause, reason: str) -> None:
        super().__init__(cause, reason)
        self.cause, self.reason = cause, reason


def run_slot(config: dict[str, Any]) -> None:
    """Run one job. This is Tune's trainable.

    Raises:
        SlotRetired: this process is not to be used again.
    """
    payload: JobPayload = config[PAYLOAD]
    outcome = run_here(payload) if payload.job.workers == 1 else run_workers(payload)
    tune.report(outcome.metrics())
    if outcome.cause is not None:
        raise SlotRetired(outcome.reason)
    free_memory()
    held = psutil.Process().memory_info().rss / psutil.virtual_memory().total
    if held > _LARGEST_SHARE:
        raise SlotRetired(f"it holds {100 * held:.0f} % of the machine's memory")


def run_here(payload: JobPayload) -> Outcome:
    """Run a job of one worker in this process, by Ray Train's local mode."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from chip_core.models.warm import BASE_MODELS

    if not payload.job.config.engine.fresh_process:
        BASE_MODELS.keep()
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KEPT_PRODUCTS))

    ends: list[Outcome] = []

    def train_loop_per_worker() -> None:
        # In local mode within Tune nothing of ray.train may be called (Ray 2.60).
        ends.append(run_job(payload, throttled(report_to_tune)))

    trainer = TorchTrainer(
        train_loop_per_worker,
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name=payload.job.id, storage_path=payload.storage),
    )
    trainer.fit()  # whose result has no return value in older releases of Ray
    return ends[0]


def run_workers(payload: JobPayload) -> Outcome:
    """Run a job of several workers as a run of Ray Train, and pass on what they report."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(0.8 * payload.begin_within)
    reports = Queue(actor_options={"num_cpus": 0})
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={PAYLOAD: payload},
        torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=payload.job.workers,
            use_gpu=payload.resources.get("GPU", 0) > 0,
            resources_per_worker=payload.resources,
            placement_strategy=payload.placement,
        ),
        run_config=RunConfig(
            name=payload.job.id,
            storage_path=payload.storage,
            callbacks=[ReportsToSlot(reports)],
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


class ReportsToSlot(UserCallback):  # type: ignore[misc]
    """Passes on what the workers of a job report.

    With Tune's own TuneReportCallback it is the slot's process that takes reports from a queue, and
    it stands still for good where one is left there as the trial's function ends (Ray 2.60).
    """

    def __init__(self, reports: Queue) -> None:
        """Nothing is reported yet."""
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[Any], checkpoint: Any) -> None:
        """Pass on the first worker's: all make the same ones."""
        self._reports.put(metrics[0])


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Run one of several workers.

    Raises:
        JobFailed: it cannot go on; the others wait for it until Train ends them.
    """
    from ray import train

    payload: JobPayload = config[PAYLOAD]
    outcome = run_job(payload, shared_reports(train.report))
    if outcome.cause is not None:
        raise JobFailed(outcome.cause, outcome.reason)


def run_job(payload: JobPayload, report: Report) -> Outcome:
    """Run a job in this process; whatever it raises is its own failure."""
    job = replace(payload.job, folder=payload.job.folder.absolute())
    if payload.staging is None:
        return _run(payload, job.folder, lambda told: job, report)
    try:
        with payload.staging.hand(job.folder) as hand:
            return _run(payload, hand.folder, lambda told: hand.brought(job, told), report)
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
        return {PAYLOAD: asdict(progress)}
    percent = 100 * progress.done / max(progress.total, 1)
    return {PAYLOAD: asdict(progress), PERCENT: percent, **progress.figures}


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


def shared_reports(send: Callable[[dict[str, Any]], None]) -> Report:
    """Return what reports of several workers: `train.report` waits until every one reports.

    So it is of the start and of steps, which all of them make, chosen by their numbers alone.
    """

    def report(progress: Progress) -> None:
        every = max(1, progress.total // _SHARED_REPORTS)
        step = progress.phase == "train" and (progress.done % every == 0 or progress.done == 1)
        if step or progress.phase == "start":
            send(metrics_of(progress))

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


def outcome_of(error: Exception, payload: JobPayload) -> Outcome:
    """Return how a run of Train failed.

    Of several workers' failures the one that the others' follow from: a worker that dies takes the
    connections of those along that wait for it, and a worker that says why it fails is heard.
    """
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        failures = [_within(failure) for failure in error.worker_failures.values()]
        lost = [failure for failure in failures if not isinstance(failure, JobFailed)]
        if any(isinstance(failure, OutOfMemoryError) for failure in lost):
            reason = "the worker process died (its machine ran out of memory)"
            return Outcome(cause="memory", reason=reason, from_outside=True)
        for failure in failures if not lost else []:
            assert isinstance(failure, JobFailed)
            return Outcome(cause=failure.cause, reason=failure.reason)
        reason = "the worker process died (killed, out of memory, or crashed)"
        return Outcome(cause="lost", reason=reason, from_outside=True)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in payload.resources.items())
    lines = str(cause).strip().splitlines() or [""]
    reason = f"Train could not run its workers ({wanted} each): {type(cause).__name__}: {lines[0]}"
    return Outcome(cause="lost", reason=reason, from_outside=True)


def _within(failure: Exception) -> Exception:
    """Return what a worker's health check found, where Train wraps it."""
    found: Exception = getattr(failure, "health_check_failure", failure)
    return found
