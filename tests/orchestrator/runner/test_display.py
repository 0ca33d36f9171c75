"""What a run shows of its trials: how far they are, and what time is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.reference_cache.spec import BuildShard
from chip_core.results import AnsweredTrial, Progress, TrialResult
from orchestrator.executors.base import (
    COPYING_PHASE,
    Job,
    JobAnswered,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
)
from orchestrator.runner.display import Board, LiveDisplay, _TrialLine


@dataclass(frozen=True)
class FakeTrial:
    fingerprint: str = "0123456789"
    arm: str = "dpo"
    name: str = "dpo, seed 0"
    seed: int | None = 0


def test_what_was_done_before_the_first_report_took_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remaining time is known with the second report, by what was done since the first."""
    now = 5.0
    monkeypatch.setattr("orchestrator.runner.display.time.monotonic", lambda: now)
    config = TrialConfig(
        model=ModelConfig(path="shapes"), benchmarks={"report": [{"name": "shapes"}]}
    )
    job = Job(id="j", name="dpo, seed 0", config=config, folder=tmp_path)
    board = Board([(job, FakeTrial(), 1)])
    board.on_event(JobStarted(job=job))
    board.on_event(JobProgressed(job=job, progress=Progress(phase="train", done=30, total=60)))
    assert board.eta(board.lines["j"]) is None
    now = 15.0
    board.on_event(JobProgressed(job=job, progress=Progress(phase="train", done=36, total=60)))
    # Of 4 (training) + 1 + 0.1, 2.4 are done, 0.4 of them in these 10 s; 2.7 are left.
    assert board.eta(board.lines["j"]) == pytest.approx(10 * 2.7 / 0.4)


def test_files_that_are_copied_are_no_share_of_a_trial(tmp_path: Path) -> None:
    config = TrialConfig(
        model=ModelConfig(path="shapes"), benchmarks={"report": [{"name": "shapes"}]}
    )
    job = Job(id="j", name="dpo, seed 0", config=config, folder=tmp_path)
    board = Board([(job, FakeTrial(), 1)])
    board.on_event(JobStarted(job=job))

    def share(phase: str, done: int, total: int) -> float:
        board.on_event(
            JobProgressed(job=job, progress=Progress(phase=phase, done=done, total=total))
        )
        return board.lines["j"].fraction_done()

    assert share("start", 1, 1) == 0
    assert share(COPYING_PHASE, 12, 12) == 0 and board.eta(board.lines["j"]) is None
    # Training counts four times a benchmark's answers, and scoring them a tenth of them.
    assert share("train", 30, 60) == pytest.approx(2 / 5.1)
    assert share("train", 60, 60) == pytest.approx(4 / 5.1)
    assert share("answer shapes", 500, 1000) == pytest.approx(4.5 / 5.1)
    assert share("answer shapes", 1000, 1000) == pytest.approx(5 / 5.1)
    left = AnsweredTrial(steps=3, answers={}, evaluations={}, seconds={})
    board.on_event(JobAnswered(job=job, answered_trial=left, scoring_job=job.scoring_job()))
    (line,) = board.lines.values()
    assert (line.state, line.fraction_done()) == ("answered", pytest.approx(5 / 5.1))
    job = job.scoring_job()
    board.on_event(JobStarted(job=job))
    assert line.state == "running"
    for phase, done, of_scoring in (("score", 0, 0.0), ("judge", 1, 0.5), ("score", 1, 1.0)):
        progress = Progress(phase=f"{phase} shapes", done=done, total=1 + (phase == "judge"))
        board.on_event(JobProgressed(job=job, progress=progress))
        assert line.fraction_done() == pytest.approx((5 + 0.1 * of_scoring) / 5.1)


def test_what_was_stopped_did_not_fail(tmp_path: Path) -> None:
    config = TrialConfig(model=ModelConfig(path="shapes"))
    jobs = [
        Job(id=name, name=name, config=config, folder=tmp_path) for name in ("failed", "killed")
    ]
    console = Console(width=120, force_terminal=True, record=True)
    shown = LiveDisplay(console, [(job, FakeTrial(arm=job.name), 1) for job in jobs])
    shown.on_event(JobFailed(job=jobs[0], reason="the loss is nan"))
    shown.on_event(JobFailed(job=jobs[1], reason="asked to", cause="stopped"))
    console.print(shown._draw())
    text = console.export_text()
    assert "1 failed, 1 killed" in text
    assert "failed: the loss is nan" in text and "killed: asked to" in text


def test_passes_and_trials_have_their_own_counts_and_times_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("orchestrator.runner.display.time.monotonic", lambda: now)
    config = TrialConfig(
        model=ModelConfig(path="shapes"), benchmarks={"report": [{"name": "shapes"}]}
    )
    jobs = [Job(id=name, name=name, config=config, folder=tmp_path) for name in ("part", "trial")]
    jobs[0] = replace(jobs[0], shard=BuildShard(passes=(), cache=tmp_path, number=0, of=1))
    board = Board([(job, FakeTrial(), 1) for job in jobs])

    def far(job: Job, phase: str, done: int, total: int) -> None:
        board.on_event(
            JobProgressed(job=job, progress=Progress(phase=phase, done=done, total=total))
        )

    board.on_event(JobStarted(job=jobs[0]))
    now = 110.0
    far(jobs[0], "reference pass", 1, 4)
    assert board.overall_eta(passes=True) == pytest.approx(30)  # a quarter took 10 s
    assert board.overall_eta() is None
    board.on_event(
        JobFinished(job=jobs[0], result=TrialResult(steps=0, evaluations={}, seconds={}))
    )
    now = 150.0
    board.on_event(JobStarted(job=jobs[1]))
    now = 160.0
    far(jobs[1], "train", 60, 60)  # 4 of 5.1 of it
    assert board.overall_eta() == pytest.approx(10 * 1.1 / 4)
    assert board.overall_eta(passes=True) == 0
    assert (board.count("done", passes=True), board.count("done")) == (1, 0)


def test_answers_along_a_training_count_at_each_of_its_models() -> None:
    """Training weighs 4; two models' answers 1 each, and 0.1 each for scoring them: 6.2 in all."""
    training = {"score_at": [0.5, 1.0]}
    asked = {"model": "shapes", "training": training, "benchmarks": {"select": ["shapes"]}}
    job: Any = SimpleNamespace(
        shard=None, config=TrialConfig.model_validate(asked), is_scoring=False, is_training=True
    )
    trial: Any = None
    line = _TrialLine(job=job, trial=trial)
    line.start(job)
    shares = []
    for phase, done in (("train", 10), ("answer shapes", 10), ("answer shapes", 0),
                        ("answer shapes", 10)):  # fmt: skip
        line.on_progress(Progress(phase=phase, done=done, total=10))
        shares.append(line.fraction_done())
    assert shares == pytest.approx([4 / 6.2, 5 / 6.2, 5 / 6.2, 6 / 6.2])
