"""What the tests' workers do in place of a trial: a job's name says what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict

from chip_core.errors import NonFiniteLossError, TrialError
from chip_core.files import write_json
from chip_core.results import RESULT, Progress, TrialResult
from chip_core.workers import current
from orchestrator.executors.base import Job, execute
from orchestrator.executors.ray.session import ENVIRONMENT

Report = Callable[[Progress], None]
Stop = Callable[[], bool]

BEGAN = time.time()


def play(job: Job, report: Report, stop: Stop) -> None:
    """Do what the job's name says."""
    globals()[f"_{job.name}"](job, report, stop)


def _steps(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    for step in range(1, 4):
        report(Progress(phase="train", done=step, total=3, figures={"loss": 1 / step}))
    report(Progress(phase="score shapes", done=0, total=1))
    seconds = {"began": BEGAN, "ended": time.time()}
    write_json(job.folder / RESULT, asdict(TrialResult(steps=3, evaluations={}, seconds=seconds)))


_again = _steps


def _environment(job: Job, report: Report, stop: Stop) -> None:
    figures = {name: float(os.environ.get(name) == value) for name, value in ENVIRONMENT.items()}
    report(Progress(phase="start", done=0, total=1, figures=figures))
    _steps(job, report, stop)
    report(Progress(phase="environment", done=1, total=1, figures=figures))


def _boom(job: Job, report: Report, stop: Stop) -> None:
    raise RuntimeError("boom\nsecond line")


def _not_finite(job: Job, report: Report, stop: Stop) -> None:
    raise NonFiniteLossError("the loss is nan at step 3")


def _killed(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    os.kill(os.getpid(), signal.SIGKILL)


def _trains(job: Job, report: Report, stop: Stop) -> None:
    execute(job, report, stop)


def _second_fails(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    workers = current()
    assert workers.size == 2
    if not workers.first:
        raise TrialError("row 7 is bad")
    workers.wait()


def _second_dies(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    workers = current()
    if not workers.first:
        os.kill(os.getpid(), signal.SIGKILL)
    workers.wait()


def _silent(job: Job, report: Report, stop: Stop) -> None:
    time.sleep(600)


def _sleeps(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    time.sleep(600)


def _hangs(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="train", done=3, total=9))
    time.sleep(600)


def _shares(job: Job, report: Report, stop: Stop) -> None:
    """Two workers on two machines: the second reads what the first wrote."""
    report(Progress(phase="start", done=0, total=1))
    workers = current()
    assert workers.size == 2 and job.share is not None
    if workers.first:
        (job.folder / "model").mkdir()
        (job.folder / "model" / "model.safetensors").write_bytes(b"weights")
        write_json(job.folder / "trained.json", {})
    job.share()
    assert (job.folder / "model" / "model.safetensors").read_bytes() == b"weights"
    folders = workers.gathered(str(job.folder))
    assert len(set(folders)) == 2, folders
    if workers.first:
        write_json(job.folder / RESULT, asdict(TrialResult(steps=1, evaluations={}, seconds={})))
