"""Early stopping on Ray: Tune's schedulers are asked, and a worker's training really ends."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from chip_core.config import EngineConfig, ModelConfig, TrialConfig
from orchestrator.executors.base import Cut, Event, Finished, Job
from orchestrator.executors.ray.tuner import RayTuneExecutor
from orchestrator.study_early import EarlyStopping

HERE = Path(__file__).parent
METRIC = "reward/accuracy"


def job(number: int, folder: Path = Path("nowhere"), name: str = "trial") -> Job:
    config = TrialConfig(model=ModelConfig(path="shapes"), engine=EngineConfig(cpus_per_worker=1))
    mark = f"{number:016x}"
    return Job(id=f"{mark}-1", name=name, config=config, folder=folder / mark, may_be_cut=True)


@pytest.mark.ray
def test_a_training_that_falls_behind_is_cut_and_the_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    jobs = [
        job(1, tmp_path, "good"),
        job(2, tmp_path, "bad"),
        replace(job(3, tmp_path, "bad"), may_be_cut=False),
    ]
    executor = RayTuneExecutor(
        workdir=tmp_path,
        max_concurrent=1,
        entry="early_jobs:play",
        early_stopping=EarlyStopping(method="asha", metric=METRIC, grace=0.25, reduction_factor=2),
    )
    events: dict[str, list[Event]] = defaultdict(list)
    executor.run(jobs, lambda event: events[event.job.id].append(event))
    ends = [events[one.id][-1] for one in jobs]
    assert [type(end) for end in ends] == [Finished, Cut, Finished]
    cut = ends[1]
    assert isinstance(cut, Cut)
    assert cut.reason.startswith("cut by early stopping (asha on reward/accuracy")
    steps = int((jobs[1].folder / "steps").read_text())
    assert 10 <= steps < 40  # from the first rung on, long before the end
