"""One job on Ray: its driver, a Tune trainable, and its worker, a Train loop.

A trial is three Python processes, one after another: `drive` runs in the first, Train's controller
is the second, `work` runs in the third. Each imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import importlib
import os
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.executors.base import Job
    from chip_core.trial import Progress

#: Keys of what travels from a worker to the caller through Train and Tune.
PROGRESS, REASON = "progress", "reason"

#: Seconds between two reports of one phase: each one passes four processes.
REPORT_EVERY = 1.0

#: Where a failed job's traceback is, in its folder.
TRACEBACK = "traceback.txt"


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One job as it travels. Only the worker opens `job`, which takes torch and more to read."""

    id: str
    job: bytes
    entry: str  # "module:function", called with the job and a report function
    resources: dict[str, float]  # of the worker
    storage: str
    environment: dict[str, str]  # for Train's controller and the worker


def drive(settings: dict[str, Any], parcels: dict[str, Parcel]) -> None:
    """Run one job as a `TorchTrainer` run of one worker; be its driver."""
    parcel = parcels[settings["job"]]
    os.environ.update(parcel.environment)  # this process is the trial's own; Train hands them on

    from ray import tune
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    class Lean(TorchTrainer):
        def _create_default_callbacks(self):
            drop = os.environ.get("DROP", "").split(",")
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in drop]
    trainer = Lean(
        work,
        train_loop_config={"parcel": parcel},
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=parcel.resources.get("GPU", 0) > 0,
            resources_per_worker=parcel.resources,
        ),
        run_config=RunConfig(
            name=parcel.id,
            storage_path=parcel.storage,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            callbacks=[TuneReportCallback()],
        ),
    )
    try:
        reason = trainer.fit().return_value
    except TrainingFailedError as error:
        reason = reason_of_death(error)
    if reason is not None:
        tune.report({REASON: reason})
        raise RuntimeError(reason)  # for Tune's own records


def work(settings: dict[str, Any]) -> str | None:
    """Run one job in this worker; return the reason if it failed.

    A reason is returned, not raised: so it arrives in the job's words, not in Ray's.
    """
    from orchestrator.executors.base import reason_of

    parcel: Parcel = settings["parcel"]
    folder: Path | None = None
    try:
        job: Job = pickle.loads(parcel.job)
        folder = job.folder
        folder.mkdir(parents=True, exist_ok=True)
        module, _, function = parcel.entry.partition(":")
        getattr(importlib.import_module(module), function)(job, throttled(_send))
    except BaseException as error:  # a SystemExit is this job's failure too
        if folder is not None and folder.is_dir():
            (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        return reason_of(error)
    return None


def throttled(
    send: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[Progress], None]:
    """Return `send` for the first progress of each phase, and then once in a while."""
    phase, due = None, 0.0

    def report(progress: Progress) -> None:
        nonlocal phase, due
        if progress.phase != phase or clock() >= due:
            send(progress)
            phase, due = progress.phase, clock() + REPORT_EVERY

    return report


def reason_of_death(error: Exception) -> str:
    """Return why a Train run ended without a word from its worker, in one line."""
    print(repr(error), flush=True)
    return repr(error)


def _send(progress: Progress) -> None:
    from ray import train

    train.report({PROGRESS: asdict(progress)})
