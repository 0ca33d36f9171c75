"""One job on Ray: its driver, a Tune trainable, and its workers, a Train loop.

A trial is two kinds of processes: `drive` runs in one, with Train's controller, and drives one job
after another; `work` runs in the others, anew for each job. Each of them imports this module, so it
imports next to nothing itself.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chip_core.results import Progress
    from orchestrator.executors.base import Job
    from orchestrator.executors.elsewhere import Hand

#: What a driver returns through Tune: why its job failed, and what that is a case of.
REASON, CAUSE = "reason", "cause"

#: Whether that was found from outside: the worker itself said nothing.
OUTSIDE = "from_outside"

#: The placement group that a job's workers hold, in its folder. A file and no report: a report is
#: lost with the driver that it passes, and the place of a worker whose driver died is freed by
#: nobody but the executor.
PLACE = "placement_group"

#: Where a job is, line by line, in its folder. A file here too: `train.report` waits until every
#: worker reports, and Tune's way from Train to Tune starts a process of 1.7 CPU s in each trial and
#: stands still for good where a report comes while the trial's function returns (Ray 2.60).
PROGRESS = "progress.jsonl"

#: Seconds between two reports of one phase.
REPORT_EVERY = 1.0


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One job as it travels. Only the worker opens it: reading a Job imports torch and more."""

    id: str
    job: bytes
    entry: str  # "module:function", called with the job and a report function
    workers: int
    resources: dict[str, float]  # each worker's
    placement: str  # Ray's strategy for the workers of one job
    place_within: float  # seconds that its workers may wait for a place
    storage: str  # Train's own files
    folder: str  # the job's own, as the executor names it
    elsewhere: bytes | None  # an `Elsewhere`, where workers do not see that folder


def drive(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job as a run of Train with its workers. This is Tune's trainable."""
    parcel: Parcel = settings["parcel"]
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(parcel.place_within)

    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    from orchestrator.executors.ray_train import trainer_of

    trainer = trainer_of(
        work,
        parcel.workers,
        scaling_config=ScalingConfig(
            num_workers=parcel.workers,
            use_gpu=parcel.resources.get("GPU", 0) > 0,
            resources_per_worker=parcel.resources,
            placement_strategy=parcel.placement,
        ),
        train_loop_config={"parcel": parcel},
        run_config=RunConfig(
            name=parcel.id,
            storage_path=parcel.storage,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        ended = trainer.fit().return_value
    except TrainingFailedError as error:
        ended = _without_a_word(error, parcel)
    return {} if ended is None else {CAUSE: ended[0], REASON: ended[1], OUTSIDE: ended[2]}


#: How a job failed: its cause, the reason, whether that was found from outside.
Ended = tuple[str, str, bool]


def work(settings: dict[str, Any]) -> Ended | None:
    """Run one job in this worker; return how it failed, where it did.

    That is returned, not raised: so it comes through in the job's words, not in Ray's. But
    one of several raises it: the others wait for it, until Train ends them.
    """
    parcel: Parcel = settings["parcel"]
    if parcel.elsewhere is None:
        return _run(parcel, None)

    from orchestrator.executors.base import cause_of, reason_of

    try:
        elsewhere = pickle.loads(parcel.elsewhere)
        with elsewhere.hand(Path(parcel.folder), told=(PLACE, PROGRESS)) as hand:
            return _run(parcel, hand)
    except Exception as error:  # what the job left cannot be copied
        if parcel.workers > 1:
            raise
        return cause_of(error), reason_of(error), False


def _run(parcel: Parcel, hand: Hand | None) -> Ended | None:
    """Run a job in this worker, in the folder that it has here."""
    from ray import train
    from ray.util import get_current_placement_group

    from orchestrator.executors.base import STOP, cause_of, keep_traceback, reason_of

    first = train.get_context().get_world_rank() == 0
    folder = Path(parcel.folder) if hand is None else hand.folder
    job: Job | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if first:
            (folder / PLACE).write_text(get_current_placement_group().id.hex(), encoding="ascii")
        report = throttled(_teller(folder)) if first else lambda progress: None
        unpacked: Job = pickle.loads(parcel.job)
        job = unpacked if hand is None else hand.brought(unpacked, report)
        module, _, function = parcel.entry.partition(":")
        execute = getattr(importlib.import_module(module), function)
        execute(job, report, (folder / STOP).exists)
    except BaseException as error:  # whatever a trial raises, SystemExit too, is its own failure
        if job is not None:
            keep_traceback(job)
        if parcel.workers > 1:
            raise JobFailed(f"{cause_of(error)}: {reason_of(error)}") from None
        return cause_of(error), reason_of(error), False
    return None


class JobFailed(Exception):
    """One of several workers cannot go on; the message is the cause and the job's reason."""


def _teller(folder: Path) -> Callable[[Progress], None]:
    """Return what writes progress into a job's folder."""
    (folder / PROGRESS).unlink(missing_ok=True)

    def tell(progress: Progress) -> None:
        with (folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(progress)) + "\n")

    return tell


def throttled(
    send: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[Progress], None]:
    """Return `send` for the first of each phase, and from then on every `REPORT_EVERY` seconds."""
    phase: str | None = None
    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal phase, due
        if progress.phase != phase or clock() >= due:
            send(progress)
            phase, due = progress.phase, clock() + REPORT_EVERY

    return report


def _without_a_word(error: Exception, parcel: Parcel) -> Ended:
    """Return how a run of Train ended without its worker having returned it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    cause = _first_cause(failures) or getattr(error, "controller_failure", error)
    died = "the worker process died"
    match type(cause).__name__:
        case "JobFailed":
            known, _, reason = str(cause).partition(": ")
            return known, reason, False
        case "WorkerGroupStartupTimeoutError" | "InsufficientClusterResourcesError":
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in parcel.resources.items())
            reason = f"no place for its worker ({wanted}) within {parcel.place_within:.0f} s"
            return "lost", reason, True
        case "WorkerGroupStartupFailedError":
            return "lost", f"{died} (while it started)", True
        case "WorkerHealthCheckTimeoutError":
            return "lost", f"{died} (it no longer answers)", True
        case "WorkerHealthCheckFailedError":
            text = str(cause)
            if "OutOfMemory" in text or "low on memory" in text:
                return "memory", f"{died} (its machine ran out of memory)", True
            if "node has died" in text or "node died" in text:
                return "lost", f"{died} (its machine is gone)", True
            return "lost", f"{died} (killed, out of memory, or crashed)", True
    lines = str(cause).strip().splitlines() or [""]
    # Train's own controller gave up: of what a worker did, it says one of the above.
    return "lost", f"{type(cause).__name__}: {lines[0]}", True


def _first_cause(failures: dict[int, Exception]) -> Exception | None:
    """Return the failure of several workers that the others' follow from.

    A worker that dies takes the connections of those along that wait for it: their words are of
    connections, and its own are none.
    """
    dead = [error for error in failures.values() if type(error).__name__ != "JobFailed"]
    return next(iter([*dead, *failures.values()]), None)
