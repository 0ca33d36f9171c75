"""The Ray executor: what it tells of good, failing, dying and silent jobs, and what it leaves.

What the workers do in place of a trial is in ray_jobs.py. A trial takes some 10 s to start on two
cores, and several times that on busy ones: so many questions share one run, and the silent job's
deadline is generous; it passes while the others run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from chip_core.config import EngineConfig, ModelConfig, TrialConfig
from chip_core.errors import UserError
from chip_core.files import read_records
from chip_core.results import Progress
from orchestrator.executors.base import (
    TRACEBACK,
    Event,
    Failed,
    Finished,
    Job,
    Progressed,
    Started,
    execute,
)
from orchestrator.executors.ray.session import ENVIRONMENT, _slots, placement_of
from orchestrator.executors.ray.slot import HANG, REPORT_EVERY, throttled
from orchestrator.executors.ray.tuner import RayTuneExecutor

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def helper_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One node with one CPU, and no chip_driver."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def job(folder: Path, number: int, name: str, **engine: float) -> Job:
    """A job whose worker does what its name says."""
    config = TrialConfig(
        model=ModelConfig(path="shapes"), engine=EngineConfig.model_validate(engine)
    )
    return Job(id=f"j{number}", name=name, config=config, folder=folder / f"{number}-{name}")


def ends(events: list[Event]) -> dict[str, str]:
    """How each job ended, by its name."""
    return {
        event.job.name: event.reason if isinstance(event, Failed) else "finished"
        for event in events
        if isinstance(event, Failed | Finished)
    }


def ray_processes() -> set[int]:
    """Return this process's children, but for the one that Python keeps for its own pools."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and "multiprocessing" not in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


@pytest.mark.ray
def test_jobs_fail_each_for_itself_and_nothing_is_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["silent", "steps", "boom", "not_finite", "killed", "again"]
    jobs = [job(tmp_path, number, name) for number, name in enumerate(names)]
    events: list[Event] = []

    RayTuneExecutor(
        workdir=tmp_path / "work", max_concurrent=2, begin_within=75, entry="ray_jobs:play"
    ).run(jobs, events.append)

    assert ends(events) == {
        "steps": "finished",
        "again": "finished",
        "boom": "RuntimeError: boom",
        "not_finite": "the loss is nan at step 3",
        "killed": "the worker process died (killed, out of memory, or crashed)",
        "silent": "its worker did not begin within 75 s",
    }
    for each in jobs:
        kinds = [type(event) for event in events if event.job is each]
        assert kinds[0] is Started
        assert kinds[-1] in (Finished, Failed)
        assert set(kinds[1:-1]) <= {Progressed}
    told = [e.progress for e in events if isinstance(e, Progressed) and e.job.name == "steps"]
    assert told[0] == Progress(phase="start", done=0, total=1)
    assert told[1] == Progress(phase="train", done=1, total=3, figures={"loss": 1.0})
    assert told[-1].phase == "score shapes"
    [result] = [e.result for e in events if isinstance(e, Finished) and e.job.name == "steps"]
    assert result.steps == 3
    assert "second line" in (jobs[2].folder / TRACEBACK).read_text(encoding="utf-8")

    assert not ray.is_initialized()
    assert ray_processes() == set()
    assert not (tmp_path / "work" / "ray").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.ray
def test_a_slot_that_hangs_ends_itself_and_one_that_is_stopped_is_ended(tmp_path: Path) -> None:
    names = ["hangs", "stands_still"]
    jobs = [job(tmp_path, number, name, stall_after=2) for number, name in enumerate(names)]
    events: list[Event] = []

    RayTuneExecutor(workdir=tmp_path / "work", entry="ray_jobs:play").run(jobs, events.append)

    told = ends(events)
    where = jobs[0].folder / HANG
    hang = r"its worker hangs: no progress for \d+ s at train 3/9"
    assert re.fullmatch(rf"{hang} \(where: {re.escape(str(where))}\)", told["hangs"])
    assert "ray_jobs.py" in where.read_text() and "_hangs" in where.read_text()
    # Nothing runs in a stopped process: its driver ends it, and nobody knows where it stood.
    assert re.fullmatch(hang, told["stands_still"])
    assert {event.cause for event in events if isinstance(event, Failed)} == {"lost"}
    assert ray_processes() == set()


@pytest.mark.ray
def test_several_workers_share_a_trial(tmp_path: Path) -> None:
    short = {
        "model": "shapes",
        "training": {"max_steps": 3, "batch_size": 3},
        "benchmarks": {"report": [{"name": "shapes", "limit": 4}]},
        "engine": {"micro_batch": 2, "threads": 1, "workers_per_trial": 2},
    }
    names = ["trains", "second_fails", "second_dies"]
    jobs = [
        Job(id=name, name=name, config=TrialConfig.model_validate(short), folder=tmp_path / name)
        for name in names
    ]
    events: list[Event] = []

    RayTuneExecutor(workdir=tmp_path / "work", entry="ray_jobs:play").run(jobs, events.append)

    assert ends(events) == {
        "trains": "finished",
        "second_fails": "row 7 is bad",
        "second_dies": "the worker process died (killed, out of memory, or crashed)",
    }
    assert ray_processes() == set()
    [result] = [e.result for e in events if isinstance(e, Finished) and e.job.name == "trains"]
    told = [e.progress for e in events if isinstance(e, Progressed) and e.job.name == "trains"]
    assert {progress.phase for progress in told} == {"start", "train"}  # what all of them report
    alone = {**short, "engine": {**short["engine"], "workers_per_trial": 1}}
    job = Job(id="a", name="a", config=TrialConfig.model_validate(alone), folder=tmp_path / "alone")
    same = execute(job, lambda progress: None)
    assert result.metrics == same.metrics
    curves = [read_records(each.folder / "curves.jsonl") for each in (jobs[0], job)]
    for one, other in zip(*curves, strict=True):
        assert one["figures"]["loss"] == pytest.approx(other["figures"]["loss"], rel=1e-5)
        assert one["figures"]["grad_norm"] == pytest.approx(other["figures"]["grad_norm"], rel=1e-4)


def test_what_fits_and_where() -> None:
    def job(workers: int, **engine: float) -> Job:
        config = TrialConfig(
            model=ModelConfig(path="shapes"),
            engine=EngineConfig.model_validate({"workers_per_trial": workers, **engine}),
        )
        return Job(id="a", name="a", config=config, folder=Path("a"))

    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 3.0}, {"CPU": 8.0}]
    one, two, four, six = (job(workers, gpus_per_worker=1) for workers in (1, 2, 4, 6))
    assert _slots([one] * 20, nodes, "here") == 7
    assert _slots([two] * 20, nodes, "here") == 3  # two on the first node, one on the second
    assert _slots([four] * 20, nodes, "here") == 1
    assert _slots([six] * 20, nodes, "here") == 1  # over two nodes
    assert [placement_of(each, nodes) for each in (two, four, six)] == [
        "STRICT_PACK", "STRICT_PACK", "PACK",
    ]  # fmt: skip
    assert replace(two, untrained=True).workers == 1  # scoring is one worker's work
    assert _slots([job(1, gpus_per_worker=0.2)] * 99, [{"CPU": 9.0, "GPU": 0.6}], "here") == 3
    with pytest.raises(UserError, match="a trial has 8 workers, and each asks for 1 CPU and 1 GPU"):
        _slots([job(8, gpus_per_worker=1)], nodes, "here")


def kinds_of(processes: set[int]) -> set[str]:
    """Return what processes are: a Ray process's name, else its script's or program's."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            command = psutil.Process(process).cmdline()
            scripts = [Path(word).name for word in command if word.endswith(".py")]
            ray_name = re.match(r"ray::(\w+)", " ".join(command))
            found.add(ray_name[1] if ray_name else (scripts or [Path(command[0]).name])[0])
    return found


@pytest.mark.ray
def test_several_runs_share_one_ray(tmp_path: Path) -> None:
    jobs = [job(tmp_path, number, "steps") for number in (1, 2)]
    events: list[Event] = []
    kinds: set[str] = set()

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progressed):
            kinds.update(kinds_of(ray_processes()))

    executor = RayTuneExecutor(workdir=tmp_path / "work", entry="ray_jobs:play", max_concurrent=3)
    with executor.opened(jobs):
        processes = {pid for pid in ray_processes()}
        # as many as there are cores, never more than are wanted: not as many as there are jobs
        assert executor.slots(jobs[0]) == min(3, len(os.sched_getaffinity(0)))
        for each in jobs:
            executor.run([each], listen)
            assert ray.is_initialized()
        assert processes & ray_processes()
    # a trial of one worker is its slot: Train starts no process beside it
    assert "ImplicitFunc" in kinds
    assert not kinds & {"TrainController", "SynchronizationActor", "_AutoscalingCoordinatorActor"}
    reasons = [event.reason for event in events if isinstance(event, Failed)]
    assert [event.job for event in events if isinstance(event, Finished)] == jobs, reasons
    assert not ray.is_initialized()
    assert ray_processes() == set()
    assert not (tmp_path / "work" / "ray").exists()


@pytest.mark.ray
def test_ctrl_c_stops_jobs_and_ray(tmp_path: Path) -> None:
    # A shell starts what it puts in the background with Ctrl-C switched off: on again for this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    events: list[Event] = []

    def stop_at_work(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progressed):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    try:
        with pytest.raises(KeyboardInterrupt):
            RayTuneExecutor(workdir=tmp_path, entry="ray_jobs:play").run(
                [job(tmp_path, 1, "sleeps")], stop_at_work
            )
    finally:
        signal.signal(signal.SIGINT, before)

    assert ends(events) == {}
    assert ray_processes() == set()


@pytest.mark.ray
def test_a_cluster_is_used_and_left_running(tmp_path: Path, cluster: Cluster) -> None:
    names = ["environment", "killed", "steps"]
    jobs = [job(tmp_path, number, name) for number, name in enumerate(names)]
    events: list[Event] = []

    executor = RayTuneExecutor(workdir=tmp_path, address=cluster.address, entry="ray_jobs:play")
    executor.run(jobs, events.append)

    assert ends(events) == {
        "environment": "finished",
        "killed": "the worker process died (killed, out of memory, or crashed)",
        "steps": "finished",  # the one CPU is free again
    }
    assert [event.job for event in events if isinstance(event, Started)] == jobs
    told = [e.progress.figures for e in events if isinstance(e, Progressed) and e.job is jobs[0]]
    assert {name: 1.0 for name in ENVIRONMENT} in told
    assert not ray.is_initialized()
    with pytest.raises(UserError, match="a worker asks for 2 CPU, and the cluster has 1 CPU"):
        executor.run([job(tmp_path, 3, "steps", cpus_per_worker=2)], events.append)
    ray.init(address=cluster.address, log_to_driver=False)
    assert ray.cluster_resources()["CPU"] == 1


@pytest.mark.ray
def test_what_a_listener_raises_comes_out(tmp_path: Path) -> None:
    def full(event: Event) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        RayTuneExecutor(workdir=tmp_path, entry="ray_jobs:play").run(
            [job(tmp_path, 1, "steps")], full
        )
    assert ray_processes() == set()


def test_a_worker_that_fits_nowhere(tmp_path: Path) -> None:
    wanted = [job(tmp_path, 1, "steps", gpus_per_worker=99)]
    with pytest.raises(UserError, match="a worker asks for 1 CPU and 99 GPU, and this machine has"):
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
            [job(tmp_path, 1, "steps")], lambda event: None
        )


def test_no_jobs_need_no_ray(tmp_path: Path) -> None:
    RayTuneExecutor(workdir=tmp_path, address="ray://nowhere").run([], lambda event: None)


def test_progress_is_told_once_a_phase_and_then_at_intervals() -> None:
    now = 0.0
    told: list[int] = []
    report = throttled(lambda progress: told.append(progress.done), clock=lambda: now)
    for step in range(1, 5):
        report(Progress(phase="train", done=step, total=9))
        now += 0.4 * REPORT_EVERY
    assert told == [1, 4]  # steps 2 and 3 are 0.4 and 0.8 of the interval after step 1
    report(Progress(phase="score shapes", done=0, total=9))
    assert told == [1, 4, 0]
