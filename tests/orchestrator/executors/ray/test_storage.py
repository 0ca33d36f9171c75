"""Workers on machines that share no disk with their driver, nor with each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from chip_core.config.trial import EngineConfig, ModelConfig, TrialConfig
from orchestrator.executors.base import Job, JobEvent, JobFailed, JobFinished, JobProgressed
from orchestrator.executors.ray.session import PROCESS_ENVIRONMENT
from orchestrator.executors.ray.tuner import RayTuneExecutor
from orchestrator.jobs.attempt import TRACEBACK_FILE
from orchestrator.storage.download import NODE_CACHE_VARIABLE
from orchestrator.storage.remote import RemoteStorage


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head for drivers, and two machines with one CPU, each with a cache of its own."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    small = {"object_store_memory": 80 * 1024**2}
    head = {"num_cpus": 0, "resources": {"chip_driver": 3}, "include_dashboard": False, **small}
    for name, value in PROCESS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(NODE_CACHE_VARIABLE, str(tmp_path / "head"))
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for name in ("one", "other"):
        monkeypatch.setenv(NODE_CACHE_VARIABLE, str(tmp_path / name))
        cluster.add_node(num_cpus=1, **small)
    monkeypatch.delenv(NODE_CACHE_VARIABLE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize("shares", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_files_go_by_the_storage(tmp_path: Path, cluster: Cluster, shares: bool) -> None:
    work, remote = tmp_path / "work", RemoteStorage(str(tmp_path / "storage"))

    def job(number: int, name: str, **engine: int) -> Job:
        config = TrialConfig(
            model=ModelConfig(path="shapes"), engine=EngineConfig.model_validate(engine)
        )
        return Job(id=f"j{number}", name=name, config=config, folder=work / "trials" / name)

    jobs = [
        job(1, "steps"),
        job(2, "boom"),
        job(3, "killed"),
        *([job(4, "shares", workers_per_trial=2)] if shares else []),
        job(5, "answers"),
    ]
    events: list[JobEvent] = []
    RayTuneExecutor(
        workdir=work, address=cluster.address, entry="ray_jobs:run_named_job", remote=remote
    ).run(jobs, events.append)
    ends = {event.job.name: event for event in events if isinstance(event, JobFailed | JobFinished)}
    assert {name: type(event) for name, event in ends.items()} == {
        "steps": JobFinished, "boom": JobFailed, "killed": JobFailed, "answers": JobFinished,
        **({"shares": JobFinished} if shares else {}),
    }, ends  # fmt: skip
    assert ends["boom"].reason == "RuntimeError: boom"  # type: ignore[union-attr]
    assert ends["steps"].result.steps == 3  # type: ignore[union-attr]
    assert (work / "trials" / "boom" / TRACEBACK_FILE).read_text().startswith("Traceback")
    phases = [event.progress.phase for event in events
              if isinstance(event, JobProgressed) and event.job.name == "steps"]  # fmt: skip
    assert list(dict.fromkeys(phases)) == ["start", "train", "score shapes"]
    # What the driver has is what the storage has, but for weights; nothing else is left anywhere.
    there = remote.sizes("trials")
    here = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
    assert here == {key for key in there if not key.endswith(".safetensors")} - {
        key for key in there if "/killed/" in key
    }
    assert ("trials/shares/model/model.safetensors" in there) == shares
    left = [
        path for name in ("one", "other", "head") for path in (tmp_path / name).glob("*/jobs/*/*")
    ]
    assert all("j3-" in str(path) for path in left), left  # the killed one's, until the next
