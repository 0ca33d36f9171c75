"""Early stopping on Ray: Tune's schedulers are asked, and a worker's training really ends."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from chip_core.config import EngineConfig, ModelConfig, TrialConfig
from chip_core.results import Progress
from orchestrator.executors.base import CUT, Cut, Event, Finished, Job
from orchestrator.executors.ray_early import Referee
from orchestrator.executors.ray_tune import RayTuneExecutor
from orchestrator.study_early import EarlyStopping

HERE = Path(__file__).parent
METRIC = "reward/accuracy"


def job(number: int, folder: Path = Path("nowhere"), name: str = "trial") -> Job:
    config = TrialConfig(model=ModelConfig(path="shapes"), engine=EngineConfig(cpus_per_worker=1))
    mark = f"{number:016x}"
    return Job(id=f"{mark}-1", name=name, config=config, folder=folder / mark, may_be_cut=True)


def at(step: int, value: float, total: int = 100) -> Progress:
    return Progress(phase="train", done=step, total=total, figures={METRIC: value})


def test_asha_keeps_the_best_of_each_rung() -> None:
    referee = Referee(
        EarlyStopping(method="asha", metric=METRIC, grace=0.25, reduction_factor=2)
    )  # rungs at 25 and 50 %, cut-off the median
    one, two, three = job(1), job(2), job(3)
    assert referee.verdict(one, at(24, 0.1)) is None  # within the grace
    assert referee.verdict(one, at(25, 0.6)) is None  # the first at the rung
    assert referee.verdict(two, at(30, 0.9)) is None  # 0.9 ≥ 0.6
    told = referee.verdict(three, at(25, 0.7))  # the median of 0.6 and 0.9 is 0.75
    assert told == (
        "cut by early stopping (asha on reward/accuracy, grace 25 %, reduction factor 2) "
        "at step 25 of 100, reward/accuracy 0.7"
    )
    assert referee.verdict(three, at(26, 0.1)) is None  # told once
    assert referee.verdict(one, at(40, 0.0)) is None  # between rungs
    # Trainings of other lengths stand at the same rung at the same share of their steps.
    assert referee.verdict(job(4), at(10, 0.1, total=40)) is not None


def test_median_cuts_what_never_reached_the_others_mean() -> None:
    referee = Referee(EarlyStopping(method="median", metric=METRIC, grace=0.2, min_trials=2))
    for number, value in ((1, 0.6), (2, 0.8)):
        for step in (20, 40):
            assert referee.verdict(job(number), at(step, value)) is None
    assert referee.verdict(job(3), at(10, 0.1)) is None  # within the grace
    assert referee.verdict(job(3), at(20, 0.75)) is None  # the median of 0.6 and 0.8 is 0.7
    assert referee.verdict(job(4), at(20, 0.65)) is not None


def test_nothing_is_cut_that_may_not_be_or_has_ended() -> None:
    referee = Referee(EarlyStopping(method="asha", metric=METRIC, grace=0.25, reduction_factor=2))
    assert referee.verdict(job(1), at(25, 0.9)) is None
    assert referee.verdict(replace(job(2), may_be_cut=False), at(25, 0.1)) is None
    assert referee.verdict(job(3), at(100, 0.1)) is None
    no_figure = Progress(phase="train", done=30, total=100, figures={"loss": 1.0})
    assert referee.verdict(job(4), no_figure) is None


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
    assert not (jobs[1].folder / CUT).exists()
