"""Every executor passes the one suite of conformance.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from chip_core.results import AnsweredTrial, TrialResult, read_answered, read_result
from orchestrator.executors import inline
from orchestrator.executors.base import Cut, Event, Finished, Job
from orchestrator.executors.inline import InlineExecutor
from orchestrator.executors.ray.tuner import RayTuneExecutor
from orchestrator.stopping import Stop
from orchestrator.study_early import EarlyStopping

from ..fakes import FakeExecutor
from . import ray_jobs
from .conformance import CAUSES, QUESTIONS, Backend, a_stop_lets_a_job_leave_a_checkpoint

HERE = Path(__file__).parent
#: Jobs of the first run; on Ray, the first three share a slot.
ALONE = ["steps", "steps", "not_finite", "steps", "boom", "no_room", "disk_full", "storage_away",
         "answers", "steps"]  # fmt: skip
ON_RAY = [*ALONE, "killed"]
OF_TWO = ["steps", "second_fails", "second_dies", "answers"]

#: With two workers each job starts four processes or more: by hand, where the machine is quiet.
KINDS = [
    "fake",
    "inline",
    pytest.param("ray-1", marks=pytest.mark.ray),
    pytest.param("ray-2", marks=[pytest.mark.ray, pytest.mark.slow]),
]


def played(job: Job, report: ray_jobs.Report, stop: ray_jobs.Stop) -> TrialResult | AnsweredTrial:
    """Run a job of ray_jobs.py in this process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    ray_jobs.play(job, report, stop)
    result = read_result(job.folder) or read_answered(job.folder)
    assert result is not None
    return result


@pytest.fixture(scope="module", params=KINDS)
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Backend, ExitStack]]:
    """A backend that made its first run, and what closes it."""
    kind, folder, stop = request.param, tmp_path_factory.mktemp("backend"), Stop()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        if kind == "fake":
            lost = {name: [cause] for name, cause in CAUSES.items()}
            fake = FakeExecutor(lost=lost, stop=stop, answers={"answers"})  # type: ignore[arg-type]
            backend = Backend(executor=fake, stop=stop, names=ON_RAY, folder=folder)
        elif kind == "inline":
            patch.setattr(inline, "execute", played)
            backend = Backend(executor=InlineExecutor(stop), stop=stop, names=ALONE, folder=folder)
        else:
            patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
            workers = int(kind[-1])
            executor = RayTuneExecutor(
                workdir=folder / "work",
                max_concurrent=1,
                entry="ray_jobs:play",
                stop=stop,
                early_stopping=EarlyStopping(
                    method="asha", metric="reward/accuracy", grace=0.25, reduction_factor=2
                ),
            )
            backend = Backend(
                executor=executor,
                stop=stop,
                names=ON_RAY if workers == 1 else OF_TWO,
                folder=folder,
                workers=workers,
            )
            stack.enter_context(executor.opened([backend.job(0, "steps")]))
        backend.first_run()
        yield kind, backend, stack


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.__name__)
def test_it_does(
    opened: tuple[str, Backend, ExitStack], question: Callable[[Backend], None]
) -> None:
    question(opened[1])


def test_a_slot_is_used_again_until_a_job_fails_in_it(
    opened: tuple[str, Backend, ExitStack],
) -> None:
    kind, backend, _ = opened
    if kind != "ray-1":
        pytest.skip("slots are of Ray's jobs of one worker")
    first, second, _, third = (job for job in backend.jobs[:4])
    assert backend.process(first) == backend.process(second) != backend.process(third)
    assert not psutil.pid_exists(int(backend.process(first)))
    # Answers are scored in a slot of another kind, and the next job finds the training's free.
    [answers] = [job for job in backend.jobs if job.name == "answers"]
    answering, scoring = (
        (answers.folder / f"{step}-process").read_text() for step in ("answering", "scoring")
    )
    assert answering != scoring


def test_early_stopping_ends_a_training(opened: tuple[str, Backend, ExitStack]) -> None:
    kind, backend, _ = opened
    if not kind.startswith("ray"):
        pytest.skip("early stopping is Ray's")
    jobs = [
        replace(backend.job(80 + n, name), may_be_cut=True)
        for n, name in enumerate(("ahead", "behind", "steps"))
    ]
    events: list[Event] = []
    backend.executor.run(jobs, events.append)
    ends = [[e for e in events if e.job.id == job.id][-1] for job in jobs]
    assert [type(end) for end in ends] == [Finished, Cut, Finished], ends
    # Judged from a quarter of its 100 steps on; what runs on after that is the way to its workers.
    assert 25 <= int((jobs[1].folder / "steps").read_text()) < 60


def test_a_stop_lets_a_job_leave_a_checkpoint(opened: tuple[str, Backend, ExitStack]) -> None:
    kind, backend, _ = opened
    a_stop_lets_a_job_leave_a_checkpoint(backend, leaves=kind != "fake")  # which does no work


def test_nothing_is_left(opened: tuple[str, Backend, ExitStack]) -> None:
    kind, backend, stack = opened
    stack.close()
    assert not ray.is_initialized()
    assert not (backend.folder / "work" / "ray").exists()
    left = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not [name for name in left if "ray" in name or name in ("raylet", "gcs_server")], left
