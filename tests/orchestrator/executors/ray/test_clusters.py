"""The Ray executor where the conformance suite does not reach: clusters, Ctrl-C, two workers.

What the workers do in place of a trial is in ray_jobs.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from chip_core.config.trial import EngineConfig, ModelConfig, TrialConfig
from chip_core.results import TrialResult
from chip_core.utils.errors import UserError
from chip_core.utils.files import read_records
from orchestrator.executors.base import (
    Job,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
)
from orchestrator.executors.ray import session
from orchestrator.executors.ray.session import PROCESS_ENVIRONMENT, job_request
from orchestrator.executors.ray.tuner import RayTuneExecutor
from orchestrator.jobs.attempt import execute_job
from orchestrator.jobs.placement import max_concurrent_trials

#: Where ray_jobs.py is. Without an __init__.py, this folder `ray` does not hide the package.
HERE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable_ray_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with one CPU, and no chip_driver."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def make_job(folder: Path, number: int, name: str, **engine: float) -> Job:
    """Make a job whose worker does what its name says."""
    config = TrialConfig(
        model=ModelConfig(path="shapes"), engine=EngineConfig.model_validate(engine)
    )
    return Job(id=f"j{number}", name=name, config=config, folder=folder / f"{number}-{name}")


def list_endings(events: list[JobEvent]) -> dict[str, str]:
    """List how each job ended, by its name."""
    return {
        event.job.name: event.reason if isinstance(event, JobFailed) else "finished"
        for event in events
        if isinstance(event, JobFailed | JobFinished)
    }


def list_child_processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def find_alive(processes: set[psutil.Process]) -> set[str]:
    """Return which of processes are alive, but for the one that Python keeps for its own pools."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and "multiprocessing" not in command:
                found.add(command)
    return found


@pytest.mark.ray
def test_several_workers_share_a_trial(tmp_path: Path) -> None:
    short = {
        "model": "shapes",
        "training": {"max_steps": 3, "batch_size": 3},
        "benchmarks": {"report": [{"name": "shapes", "limit": 4}]},
        "engine": {"micro_batch": 2, "threads": 1, "workers_per_trial": 2},
    }
    names = ["trains", "second_dies"]
    jobs = [
        Job(id=name, name=name, config=TrialConfig.model_validate(short), folder=tmp_path / name)
        for name in names
    ]
    events: list[JobEvent] = []

    RayTuneExecutor(workdir=tmp_path / "work", entry="ray_jobs:run_named_job").run(
        jobs, events.append
    )

    assert list_endings(events) == {
        "trains": "finished",
        "second_dies": "the worker process died (killed, out of memory, or crashed)",
    }
    assert find_alive(list_child_processes()) == set()
    [result] = [e.result for e in events if isinstance(e, JobFinished) and e.job.name == "trains"]
    told = [e.progress for e in events if isinstance(e, JobProgressed) and e.job.name == "trains"]
    assert {progress.phase for progress in told} == {
        "start", "train", "answer shapes", "score shapes",
    }  # fmt: skip
    alone = {**short, "engine": {**short["engine"], "workers_per_trial": 1}}
    job = Job(id="a", name="a", config=TrialConfig.model_validate(alone), folder=tmp_path / "alone")
    execute_job(job, lambda progress: None)
    same = execute_job(job.scoring_job(), lambda progress: None)
    assert isinstance(same, TrialResult)
    assert result.metrics == same.metrics
    curves = [read_records(each.folder / "curves.jsonl") for each in (jobs[0], job)]
    for one, other in zip(*curves, strict=True):
        assert one["figures"]["loss"] == pytest.approx(other["figures"]["loss"], rel=1e-5)
        assert one["figures"]["grad_norm"] == pytest.approx(other["figures"]["grad_norm"], rel=1e-4)


def test_a_trial_that_fits_nowhere() -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}]
    wanted = job_request(make_job(Path("a"), 1, "steps", workers_per_trial=8, gpus_per_worker=1))
    with pytest.raises(
        UserError,
        match="^a trial has 8 workers, and each asks for 1 CPU and 1 GPU, and here has 8 CPU and 4 "
        "GPU; 8 CPU and 0 GPU: lower engine.workers_per_trial, engine.cpus_per_worker or",
    ):
        max_concurrent_trials([wanted], nodes, "here")


def test_as_many_run_at_once_as_fit_and_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_local_resources", lambda: {"CPU": 4.0, "GPU": 0.0})
    one, two = make_job(tmp_path, 1, "steps"), make_job(tmp_path, 2, "steps", cpus_per_worker=2)
    at_once = [
        RayTuneExecutor(workdir=tmp_path, max_concurrent=wanted).count_slots(each)
        for each in (one, two)
        for wanted in (None, 3, 9)
    ]
    assert (
        replace(make_job(tmp_path, 3, "steps", workers_per_trial=2), untrained=True).num_workers
        == 1
    )
    assert at_once == [4, 3, 4, 2, 2, 2]  # 4 CPU hold four jobs of one, two of two


# tests/e2e/test_stopping.py gives the program Ctrl-C; what is alive then is looked at here.
@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_stops_jobs_and_ray(tmp_path: Path) -> None:
    # A shell starts what it puts in the background with Ctrl-C switched off: on again for this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    events: list[JobEvent] = []
    started: set[psutil.Process] = set()

    def stop_at_work(event: JobEvent) -> None:
        events.append(event)
        if isinstance(event, JobProgressed):
            started.update(list_child_processes())
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    try:
        with pytest.raises(KeyboardInterrupt):
            RayTuneExecutor(workdir=tmp_path, entry="ray_jobs:run_named_job").run(
                [make_job(tmp_path, 1, "sleeps")], stop_at_work
            )
    finally:
        signal.signal(signal.SIGINT, before)

    assert list_endings(events) == {}
    assert len(started) > 3  # Ray's own, and the slot, which sleeps when its Ray is gone
    assert find_alive(started) == set()


@pytest.mark.ray
def test_a_cluster_is_used_and_left_running(tmp_path: Path, cluster: Cluster) -> None:
    names = ["environment", "killed", "steps"]
    jobs = [make_job(tmp_path, number, name) for number, name in enumerate(names)]
    events: list[JobEvent] = []

    executor = RayTuneExecutor(
        workdir=tmp_path, address=cluster.address, entry="ray_jobs:run_named_job"
    )
    executor.run(jobs, events.append)

    assert list_endings(events) == {
        "environment": "finished",
        "killed": "the worker process died (killed, out of memory, or crashed)",
        "steps": "finished",  # the one CPU is free again
    }
    assert [event.job for event in events if isinstance(event, JobStarted)] == jobs
    told = [e.progress.figures for e in events if isinstance(e, JobProgressed) and e.job is jobs[0]]
    assert {name: 1.0 for name in PROCESS_ENVIRONMENT} in told
    assert not ray.is_initialized()
    with pytest.raises(UserError, match="a worker asks for 2 CPU, and the cluster has 1 CPU"):
        executor.run([make_job(tmp_path, 3, "steps", cpus_per_worker=2)], events.append)
    ray.init(address=cluster.address, log_to_driver=False)
    assert ray.cluster_resources()["CPU"] == 1


def test_a_worker_that_fits_nowhere(tmp_path: Path) -> None:
    wanted = [make_job(tmp_path, 1, "steps", cpus_per_worker=999)]
    with pytest.raises(UserError, match="a worker asks for 999 CPU, and this machine has"):
        RayTuneExecutor(workdir=tmp_path).run(wanted, lambda event: None)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://head:10001", "Ray's client protocol is not supported"),
        ("127.0.0.1:1", "no Ray cluster at the address 127.0.0.1:1"),
        ("nonsense", "no Ray cluster at the address nonsense"),
    ],
)
def test_an_address_that_leads_nowhere(tmp_path: Path, address: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        RayTuneExecutor(workdir=tmp_path, address=address).run(
            [make_job(tmp_path, 1, "steps")], lambda event: None
        )


def test_no_jobs_need_no_ray(tmp_path: Path) -> None:
    RayTuneExecutor(workdir=tmp_path, address="ray://nowhere").run([], lambda event: None)
    assert not ray.is_initialized()
