"""What the tests' workers do in place of a trial: a job's name says what."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict

from chip_core.results import (
    ANSWERED,
    RESULT,
    AnsweredTrial,
    Answers,
    Progress,
    TrialResult,
    write_answered,
)
from chip_core.utils.errors import (
    MemoryFullError,
    StoppedError,
    StorageError,
    TrialError,
)
from chip_core.utils.files import write_json
from chip_core.utils.workers import current_workers
from orchestrator.executors.base import Job
from orchestrator.executors.ray.session import PROCESS_ENVIRONMENT
from orchestrator.jobs.attempt import execute_job

Report = Callable[[Progress], None]
Stop = Callable[[], bool]

BEGAN = time.time()


def run_named_job(job: Job, report: Report, stop: Stop) -> None:
    """Do what the job's name says."""
    globals()[f"_{job.name}"](job, report, stop)


def _steps(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / f"process-{current_workers().rank}").write_text(str(os.getpid()))
    for step in range(1, 4):
        report(Progress(phase="train", done=step, total=3, figures={"loss": 1 / step}))
    report(Progress(phase="score shapes", done=0, total=1))
    seconds = {"began": BEGAN, "ended": time.time()}
    write_json(job.folder / RESULT, asdict(TrialResult(steps=3, evaluations={}, seconds=seconds)))


def _answers(job: Job, report: Report, stop: Stop) -> None:
    """Answer; and, as the next step, score that."""
    report(Progress(phase="start", done=0, total=1))
    if not current_workers().is_main:
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    step = "scoring" if job.is_scoring else "answering"
    (job.folder / f"{step}-process").write_text(str(os.getpid()))
    if job.is_scoring:
        assert job.answers == job.folder and (job.answers / ANSWERED).exists()
        report(Progress(phase="score shapes", done=1, total=1))
        write_json(job.folder / RESULT, asdict(TrialResult(steps=3, evaluations={}, seconds={})))
    else:
        answers = {"report/shapes": Answers(items=1, responses="responses/report-shapes.jsonl")}
        answered = AnsweredTrial(steps=3, answers=answers, evaluations={}, seconds={})
        write_answered(job.folder, answered)


def _dies_scoring(job: Job, report: Report, stop: Stop) -> None:
    if job.is_scoring:
        _killed(job, report, stop)
    _answers(job, report, stop)


def _environment(job: Job, report: Report, stop: Stop) -> None:
    figures = {
        name: float(os.environ.get(name) == value) for name, value in PROCESS_ENVIRONMENT.items()
    }
    report(Progress(phase="start", done=0, total=1, figures=figures))
    _steps(job, report, stop)
    report(Progress(phase="environment", done=1, total=1, figures=figures))


def _boom(job: Job, report: Report, stop: Stop) -> None:
    raise RuntimeError("boom\nsecond line")


def _killed(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    os.kill(os.getpid(), signal.SIGKILL)


def _no_room(job: Job, report: Report, stop: Stop) -> None:
    raise MemoryFullError("no room on the GPU")


def _disk_full(job: Job, report: Report, stop: Stop) -> None:
    raise OSError(28, "No space left on device")


def _storage_away(job: Job, report: Report, stop: Stop) -> None:
    raise StorageError("the storage is away")


def _waits(job: Job, report: Report, stop: Stop) -> None:
    """Train until told to stop, and leave a checkpoint then."""
    report(Progress(phase="train", done=1, total=9, figures={"loss": 1.0}))
    while not stop():
        time.sleep(0.05)
    if current_workers().is_main:
        (job.folder / "checkpoint").touch()
    raise StoppedError("stopped after step 1 of 9")


def _ahead(job: Job, report: Report, stop: Stop) -> None:
    _race(job, report, steps=4, value=1.0)


def _behind(job: Job, report: Report, stop: Stop) -> None:
    _race(job, report, steps=100, value=0.0)


def _spared(job: Job, report: Report, stop: Stop) -> None:
    _race(job, report, steps=4, value=0.0)


def _race(job: Job, report: Report, *, steps: int, value: float) -> None:
    """Make steps of half a second that early stopping judges; say how many were made."""
    for step in range(1, steps + 1):
        (job.folder / "steps").write_text(str(step))
        report(Progress(phase="train", done=step, total=steps, figures={"reward/accuracy": value}))
        time.sleep(0.5)
    write_json(job.folder / RESULT, asdict(TrialResult(steps=steps, evaluations={}, seconds={})))


def _trains(job: Job, report: Report, stop: Stop) -> None:
    execute_job(job, report, stop)


def _second_fails(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    workers = current_workers()
    assert workers.size == 2
    if not workers.is_main:
        raise TrialError("row 7 is bad")
    workers.barrier()


def _second_dies(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    workers = current_workers()
    if not workers.is_main:
        os.kill(os.getpid(), signal.SIGKILL)
    workers.barrier()


def _silent(job: Job, report: Report, stop: Stop) -> None:
    time.sleep(600)


def _sleeps(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="start", done=0, total=1))
    time.sleep(600)


def _hangs(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="train", done=3, total=9))
    time.sleep(600)


def _stands_still(job: Job, report: Report, stop: Stop) -> None:
    report(Progress(phase="train", done=3, total=9))
    os.kill(os.getpid(), signal.SIGSTOP)


def _shares(job: Job, report: Report, stop: Stop) -> None:
    """Two workers on two machines: the second reads what the first wrote."""
    report(Progress(phase="start", done=0, total=1))
    workers = current_workers()
    assert workers.size == 2 and job.share_files is not None
    if workers.is_main:
        (job.folder / "model").mkdir()
        (job.folder / "model" / "model.safetensors").write_bytes(b"weights")
        write_json(job.folder / "trained.json", {})
    job.share_files()
    assert (job.folder / "model" / "model.safetensors").read_bytes() == b"weights"
    folders = workers.all_gather(str(job.folder))
    assert len(set(folders)) == 2, folders
    if workers.is_main:
        write_json(job.folder / RESULT, asdict(TrialResult(steps=1, evaluations={}, seconds={})))
