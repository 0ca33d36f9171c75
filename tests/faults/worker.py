"""What a worker does in a study that faults are put into: a trial, and a note of each moment.

The executor's workers import it by its name. Faults that only code can cause are here too: a loss
that is no number, and a full disk where no small disk could be mounted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chip_core.results import Progress
from chip_core.training import checkpoint, trainer
from orchestrator.executors.base import Job
from orchestrator.jobs.attempt import execute_job as really_execute

#: Where an attempt is, line by line, in its folder; what is to go wrong, in the work directory.
MOMENTS, PLAN, FULL = "moments.jsonl", "faults.json", "disk-is-full"

#: Seconds that each step and batch takes longer, so that a fault meets the one it is meant for.
SLOWER = 0.75
#: The phases of a trial in which a fault may be done to it, by how their names begin.
TRAINING, SCORING = ("train",), ("score", "judge")

_jobs = 0  # that began in this process: from the second on it is a warm slot


def run_job(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    """Run a job as its executor would."""
    global _jobs
    _jobs += 1
    workdir = job.folder.parents[2]
    plan: dict[str, Any] = json.loads((workdir / PLAN).read_text())
    job.folder.mkdir(parents=True, exist_ok=True)

    def told(progress: Progress) -> None:
        note = {
            "phase": progress.phase,
            "done": progress.done,
            "trains": job.is_training,
            "pid": os.getpid(),
            "job": _jobs,
            "time": time.time(),
        }
        # on a disk that is full, what a trial does about it is to be seen, not what this does
        with contextlib.suppress(OSError), (job.folder / MOMENTS).open("a") as file:
            file.write(json.dumps(note) + "\n")
        report(progress)
        if progress.phase.startswith(TRAINING + SCORING):
            time.sleep(SLOWER)

    with contextlib.ExitStack() as stack:  # the process has other jobs after this one
        if job.is_training and "nan" in plan:
            stack.enter_context(_write_nan_once(plan["nan"], workdir))
        if job.is_training:
            stack.enter_context(_fail_checkpoints(workdir / FULL))
        really_execute(job, told, stop)


@contextlib.contextmanager
def _write_nan_once(step: int, workdir: Path) -> Iterator[None]:
    """Let the update before a step write NaN, in the first training that comes here."""
    try:
        (workdir / "poisoned").touch(exist_ok=False)
    except FileExistsError:
        yield
        return
    made = trainer.make_optimizer

    def poisoned(*arguments: Any) -> Any:
        optimizer, schedule = made(*arguments)
        count = 0

        def after(*_: Any) -> None:
            nonlocal count
            count += 1
            if count == step - 1:
                optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

        optimizer.register_step_post_hook(after)
        return optimizer, schedule

    trainer.make_optimizer = poisoned
    try:
        yield
    finally:
        trainer.make_optimizer = made


@contextlib.contextmanager
def _fail_checkpoints(flag: Path) -> Iterator[None]:
    """Let no checkpoint be written while a file is there."""
    written = checkpoint.write_weights

    def full(*arguments: Any, **options: Any) -> None:
        if flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(*arguments, **options)

    checkpoint.write_weights = full
    try:
        yield
    finally:
        checkpoint.write_weights = written
