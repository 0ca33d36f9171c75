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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chip_core.results import Progress
from chip_core.training import checkpoint, trainer
from orchestrator.executors.base import Job
from orchestrator.executors.base import execute as really_execute

#: Where an attempt is, line by line, in its folder; what is to go wrong, in the work directory.
MOMENTS, PLAN, FULL = "moments.jsonl", "faults.json", "disk-is-full"

#: Seconds that each step takes longer, so that a fault meets the step it is meant for.
SLOWER = 0.25


def execute(job: Job, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
    """Run a job as its executor would."""
    workdir = job.folder.parents[2]
    plan: dict[str, Any] = json.loads((workdir / PLAN).read_text())
    if job.trains and "nan" in plan:
        _poison(plan["nan"], workdir)
    if job.trains:
        _full_disk(workdir / FULL)
    job.folder.mkdir(parents=True, exist_ok=True)

    def told(progress: Progress) -> None:
        note = {
            "phase": progress.phase,
            "done": progress.done,
            "trains": job.trains,
            "pid": os.getpid(),
            "raylet": os.getppid(),
            "time": time.time(),
        }
        # on a disk that is full, what a trial does about it is to be seen, not what this does
        with contextlib.suppress(OSError), (job.folder / MOMENTS).open("a") as file:
            file.write(json.dumps(note) + "\n")
        report(progress)
        if progress.phase == "train":
            time.sleep(SLOWER)

    really_execute(job, told, stop)


def _poison(step: int, workdir: Path) -> None:
    """Let the update before a step write NaN, in the first training that comes here."""
    try:
        (workdir / "poisoned").touch(exist_ok=False)
    except FileExistsError:
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


def _full_disk(flag: Path) -> None:
    """Let no checkpoint be written while a file is there."""
    written = checkpoint.write_weights

    def full(*arguments: Any, **options: Any) -> None:
        if flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(*arguments, **options)

    checkpoint.write_weights = full
