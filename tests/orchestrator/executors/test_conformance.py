"""Every executor passes the one suite of conformance.py."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from chip_core.results import AnsweredTrial, Progress, TrialResult, read_answered, read_result
from orchestrator.executors import inline
from orchestrator.executors.base import (
    Job,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStoppedEarly,
)
from orchestrator.executors.inline import InlineExecutor
from orchestrator.executors.ray.job_process import HANG_FILE
from orchestrator.executors.ray.tuner import RayTuneExecutor
from orchestrator.jobs.attempt import TRACEBACK_FILE
from orchestrator.jobs.job import StopRequest
from orchestrator.study.early_stopping import EarlyStopping

from ..fakes import FakeExecutor
from . import ray_jobs
from .conformance import CAUSES, CHECKS, Backend, check_a_stopped_job_leaves_a_checkpoint

HERE = Path(__file__).parent
#: Jobs of the first run; on Ray, the first three share a slot.
ALONE = ["steps", "steps", "boom", "steps", "no_room", "disk_full", "storage_away",
         "answers", "steps"]  # fmt: skip
EVERY = [*ALONE, "dies_scoring", "killed", "silent", "hangs"]
#: On Ray each job that fails ends its slot, and the next one begins with some 6 CPU s of imports:
#: of what a job raises, two are told apart in the gate.
ON_RAY = [name for name in EVERY if name not in ("disk_full", "storage_away")]
OF_TWO = ["steps", "second_fails", "second_dies", "answers"]

#: Why jobs of one worker fail.
REASONS = {
    "boom": "RuntimeError: boom",
    "no_room": "no room on the GPU",
    "disk_full": r"a disk is full \(.*\): free some space and run the study again",
    "storage_away": "the storage is away",
    "killed": r"the worker process died \(killed, out of memory, or crashed\)",
    "silent": r"its worker did not begin within 75 s",
    "hangs": r"its worker hangs: no progress for \d+ s at train 3/9 \(where: .*hang.txt\)",
}
#: On Ray by one worker, with two causes more by hand. With two workers each job starts eight
#: processes one after another, some 30 CPU s of imports: by hand, where the machine is quiet.
KINDS = [
    "fake",
    "inline",
    pytest.param("ray-1", marks=pytest.mark.ray),
    pytest.param("ray-1-every", marks=[pytest.mark.ray, pytest.mark.slow]),
    pytest.param("ray-2", marks=[pytest.mark.ray, pytest.mark.slow]),
]
#: No question takes longer; the first run, of up to 13 jobs, has a limit of its own.
pytestmark = pytest.mark.timeout(300)


def run_inline(
    job: Job, report: ray_jobs.Report, stop: ray_jobs.Stop
) -> TrialResult | AnsweredTrial:
    """Run a job of ray_jobs.py in this process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    ray_jobs.run_named_job(job, report, stop)
    result = read_result(job.folder) or read_answered(job.folder)
    assert result is not None
    return result


def list_process_kinds() -> set[str]:
    """Return what this process's children are, those of Ray by the names that it gives them."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found.add(re.split(r"[.\s]", " ".join(process.cmdline()))[0])
    return found


@contextmanager
def redirect_output(file: Path) -> Iterator[None]:
    """Write to a file what goes to this process's output and error streams."""
    kept = [os.dup(1), os.dup(2)]
    with file.open("w") as out:
        try:
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
            yield
        finally:
            for stream in (1, 2):
                os.dup2(kept[stream - 1], stream)
                os.close(kept[stream - 1])


@pytest.fixture(scope="module", params=KINDS)
def opened_backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Backend, ExitStack]]:
    """A backend that made its first run, and what closes it."""
    kind, folder, stop = request.param, tmp_path_factory.mktemp("backend"), StopRequest()
    on_ray = EVERY if kind == "ray-1-every" else ON_RAY
    kind = kind.removesuffix("-every")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if kind == "fake":
            lost = {name: [cause] for name, cause in CAUSES.items()}
            steps = {"answers", "dies_scoring"}
            fake = FakeExecutor(lost=lost, stop=stop, answers=steps)  # type: ignore[arg-type]
            backend = Backend(executor=fake, stop=stop, names=EVERY, folder=folder)
        elif kind == "inline":
            patch.setattr(inline, "execute_job", run_inline)
            backend = Backend(executor=InlineExecutor(stop), stop=stop, names=ALONE, folder=folder)
        else:
            patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
            workers = int(kind[-1])
            executor = RayTuneExecutor(
                workdir=folder / "work",
                max_concurrent=1,
                begin_within=75.0 if workers == 1 else 600.0,
                entry="ray_jobs:run_named_job",
                stop=stop,
                early_stopping=EarlyStopping(
                    method="asha", metric="reward/accuracy", grace=0.25, reduction_factor=2
                ),
            )
            backend = Backend(
                executor=executor,
                stop=stop,
                names=on_ray if workers == 1 else OF_TWO,
                folder=folder,
                workers=workers,
            )
            stack.enter_context(executor.open([backend.make_job(0, "steps")]))

        def look() -> None:
            with (folder / "processes").open("a") as file:
                print(*list_process_kinds(), file=file)

        backend.on_progress = look
        with redirect_output(folder / "printed"):
            backend.run_first()
        yield kind, backend, stack


@pytest.mark.timeout(900)
def test_the_first_run_comes_to_an_end(opened_backend: tuple[str, Backend, ExitStack]) -> None:
    _, backend, _ = opened_backend
    assert {event.job.id for event in backend.events} >= {job.id for job in backend.jobs}


@pytest.mark.parametrize("question", CHECKS, ids=lambda question: question.__name__)
def test_an_executor_passes_the_check(
    opened_backend: tuple[str, Backend, ExitStack], question: Callable[[Backend], None]
) -> None:
    question(opened_backend[1])


def test_every_phase_is_told(opened_backend: tuple[str, Backend, ExitStack]) -> None:
    kind, backend, _ = opened_backend
    if kind == "fake":
        pytest.skip("it does no work")
    events = backend.list_events(backend.jobs[0])
    told = [event.progress for event in events if isinstance(event, JobProgressed)]
    assert told[0] == Progress(phase="start", done=0, total=1)
    assert told[1] == Progress(phase="train", done=1, total=3, figures={"loss": 1.0})
    assert told[-1] == Progress(phase="score shapes", done=0, total=1)
    assert isinstance(events[-1], JobFinished) and events[-1].result.steps == 3


def test_a_failure_says_why_and_nothing_else_is_printed(
    opened_backend: tuple[str, Backend, ExitStack],
) -> None:
    kind, backend, _ = opened_backend
    if kind not in ("inline", "ray-1"):
        pytest.skip("their jobs do not fail by these words")
    for job in backend.jobs:
        if job.name in REASONS:
            [failed] = [event for event in backend.list_events(job) if isinstance(event, JobFailed)]
            assert re.fullmatch(REASONS[job.name], failed.reason), failed.reason
        if job.name == "boom":
            assert "second line" in (job.folder / TRACEBACK_FILE).read_text(encoding="utf-8")
        if job.name == "hangs":
            assert "in _hangs" in (job.folder / HANG_FILE).read_text(encoding="utf-8")
    assert (backend.folder / "printed").read_text(encoding="utf-8") == ""


def test_a_slot_is_used_again_until_a_job_fails_in_it(
    opened_backend: tuple[str, Backend, ExitStack],
) -> None:
    kind, backend, _ = opened_backend
    if kind != "ray-1":
        pytest.skip("slots are of Ray's jobs of one worker")
    first, second, _, third = (job for job in backend.jobs[:4])
    assert (
        backend.read_process_id(first)
        == backend.read_process_id(second)
        != backend.read_process_id(third)
    )
    assert not psutil.pid_exists(int(backend.read_process_id(first)))
    # Answers are scored in another process, and the next job finds the training's free.
    [at] = [number for number, job in enumerate(backend.jobs) if job.name == "answers"]
    answering, scoring = (
        (backend.jobs[at].folder / f"{step}-process").read_text()
        for step in ("answering", "scoring")
    )
    assert backend.read_process_id(backend.jobs[at + 1]) == answering != scoring
    # What comes later finds the slot of what it came after.
    assert backend.later_jobs is not None
    assert len({backend.read_process_id(job) for job in backend.later_jobs}) == 1
    # A trial of one worker is its slot: Train starts no process beside it.
    kinds = set((backend.folder / "processes").read_text().split())
    assert "ray::ImplicitFunc" in kinds
    train = {"TrainController", "SynchronizationActor", "_AutoscalingCoordinatorActor"}
    assert not kinds & {f"ray::{name}" for name in train}, kinds


def test_a_scorer_that_dies_is_replaced(opened_backend: tuple[str, Backend, ExitStack]) -> None:
    kind, backend, _ = opened_backend
    if kind != "ray-1":
        pytest.skip("scorers are Ray's")
    ends = [e for e in backend.events if e.job.is_scoring and e.job.name != "answers"]
    [failed] = [event for event in ends if isinstance(event, JobFailed)]
    assert (failed.cause, failed.reason) == ("worker_lost", REASONS["killed"].replace("\\", ""))
    assert failed.retry_job is not None and failed.retry_job.is_scoring
    [finished] = [event for event in ends if isinstance(event, JobFinished)]
    assert finished.job.id == failed.retry_job.id


def test_early_stopping_ends_a_training(opened_backend: tuple[str, Backend, ExitStack]) -> None:
    kind, backend, _ = opened_backend
    if not kind.startswith("ray"):
        pytest.skip("early stopping is Ray's")
    jobs = [
        replace(backend.make_job(80 + n, name), can_stop_early=name != "spared")
        for n, name in enumerate(("ahead", "behind", "spared"))
    ]
    events: list[JobEvent] = []
    backend.executor.run(jobs, events.append)
    ends = [[e for e in events if e.job.id == job.id][-1] for job in jobs]
    assert [type(end) for end in ends] == [JobFinished, JobStoppedEarly, JobFinished], ends
    assert isinstance(ends[1], JobStoppedEarly)
    assert ends[1].reason.startswith("cut by early stopping (asha on reward/accuracy")
    # Judged from a quarter of its 100 steps on; what runs on after that is the way to its workers.
    assert 25 <= int((jobs[1].folder / "steps").read_text()) < 60


def test_a_stop_lets_a_job_leave_a_checkpoint(
    opened_backend: tuple[str, Backend, ExitStack],
) -> None:
    kind, backend, _ = opened_backend
    check_a_stopped_job_leaves_a_checkpoint(backend, leaves=kind != "fake")  # which does no work


def test_a_closed_executor_leaves_no_process_behind(
    opened_backend: tuple[str, Backend, ExitStack],
) -> None:
    kind, backend, stack = opened_backend
    before = psutil.Process().children(recursive=True)  # workers: children of what ends first
    stack.close()
    assert not ray.is_initialized()
    assert not (backend.folder / "work" / "ray").exists()
    left = []
    for process in before:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()))
    assert not [command for command in left if re.search("ray::|/ray/", command)], left
