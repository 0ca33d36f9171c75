"""What the tests' workers do in place of a trial: the job's name says what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict

from chip_core.errors import NonFiniteLossError
from chip_core.files import write_json
from chip_core.trial import RESULT, Progress, TrialResult
from orchestrator.executors.base import Job


def play(job: Job, report: Callable[[Progress], None]) -> TrialResult:
    """Do what the job's name says."""
    report(Progress(phase="start", done=0, total=1))
    return globals()[f"_{job.name}"](job, report)


def _steps(job: Job, report: Callable[[Progress], None]) -> TrialResult:
    for step in range(1, 4):
        report(Progress(phase="train", done=step, total=3, figures={"loss": 1 / step}))
    report(Progress(phase="score shapes", done=0, total=1))
    result = TrialResult(steps=3, evaluations={}, seconds={"began": BEGAN, "ended": time.time()})
    write_json(job.folder / RESULT, asdict(result))
    return result


def _nothing_left(job: Job, report: Callable[[Progress], None]) -> None:
    pass


def _boom(job: Job, report: Callable[[Progress], None]) -> None:
    raise RuntimeError("boom\nsecond line")


def _nan(job: Job, report: Callable[[Progress], None]) -> None:
    raise NonFiniteLossError("the loss is nan at step 3")


def _killed(job: Job, report: Callable[[Progress], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sleeps(job: Job, report: Callable[[Progress], None]) -> None:
    time.sleep(600)


BEGAN = time.time()
