"""Trying again: only what can get better, a bounded number of times, each attempt in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.utils.errors import MemoryFullError
from chip_core.utils.files import read_records
from orchestrator.executors.base import Job, JobEvent, JobFailed, JobFinished
from orchestrator.executors.inline import InlineExecutor
from orchestrator.jobs.attempt import Cause, failure_cause, failure_reason
from orchestrator.plan.plan import Plan
from orchestrator.runner.jobs import UNRECORDED_END, make_jobs
from orchestrator.runner.retries import next_retry
from orchestrator.state.ledger import Ledger

from ..fakes import FakeExecutor, run_with_fakes

PlanOf = Callable[..., Plan]
BAD = "dpo, frozen, seed 1"


def make_failure(
    cause: Cause, *, outside: bool = False, micro_batch: int = 4, **job: Any
) -> JobFailed:
    config = TrialConfig.model_validate(
        {"model": "shapes", "engine": {"micro_batch": micro_batch, "retries": 2}}
    )
    one = Job(id="x-1", name="x", config=config, folder=Path("x"), **job)
    return JobFailed(job=one, reason="why", cause=cause, from_outside=outside)


@pytest.mark.parametrize("cause", ["trial_error", "disk", "stopped"])
def test_what_cannot_get_better_is_not_tried_again(cause: Cause) -> None:
    assert next_retry(make_failure(cause), lost_count=0) is None


def test_a_lost_worker_is_tried_again_as_often_as_the_engine_says() -> None:
    lost = make_failure("worker_lost", outside=True)
    assert [next_retry(lost, lost_count=times) for times in range(3)] == [lost.job, lost.job, None]


def test_memory_that_ran_out_halves_the_micro_batch_and_nothing_else() -> None:
    job = make_failure("memory").job
    sizes = []
    for _ in range(2):  # 4 → 2 → 1
        retry_job = next_retry(JobFailed(job=job, reason="why", cause="memory"), lost_count=9)
        assert retry_job is not None
        job = retry_job
        sizes.append(job.config.engine.micro_batch)
    assert sizes == [2, 1]
    assert job.notes == (
        "micro-batch 2 instead of 4 with the same global batch: why",
        "micro-batch 1 instead of 2 with the same global batch: why",
    )
    same = job.config.model_copy(update={"engine": make_failure("memory").job.config.engine})
    assert same == make_failure("memory").job.config
    # A micro-batch of 1 is the smallest.
    assert next_retry(JobFailed(job=job, reason="why", cause="memory"), lost_count=0) is None


def test_a_machine_whose_memory_ran_out_is_tried_again_where_nothing_is_left_to_halve() -> None:
    killed = make_failure("memory", outside=True, untrained=True)
    assert next_retry(killed, lost_count=0) is killed.job
    assert next_retry(killed, lost_count=2) is None
    assert next_retry(make_failure("memory", untrained=True), lost_count=0) is None


@pytest.mark.usefixtures("blank_figures")
def test_each_attempt_of_a_run_ends_once_in_the_ledger(plan_of: PlanOf, tmp_path: Path) -> None:
    outcome, executor, tracker = run_with_fakes(
        plan_of(), tmp_path, FakeExecutor(lost={BAD: ["worker_lost", "worker_lost"]})
    )
    assert not outcome.failed
    attempts = [job.folder.name for job in executor.jobs if job.name == BAD]
    assert attempts == ["attempt-1", "attempt-2", "attempt-3"]
    trial = next(trial for trial in plan_of().trials if trial.name == BAD)
    history = Ledger(tmp_path)[trial.fingerprint].history
    assert [each.outcome for each in history.values()] == ["failed", "failed", "finished"]
    ends = [entry["event"] for entry in read_records(tmp_path / "ledger" / "ledger.jsonl")]
    assert ends.count("started") == 11  # 9 trials, and one of them twice more
    assert ends.count("finished") == 9
    assert [view.status for view in tracker.ended] == ["FINISHED"] * 9


@pytest.mark.usefixtures("blank_figures")
def test_retries_of_a_run_come_to_an_end(plan_of: PlanOf, tmp_path: Path) -> None:
    executor = FakeExecutor(lost={BAD: ["worker_lost"] * 9})
    outcome, _, _ = run_with_fakes(plan_of(), tmp_path, executor)
    assert outcome.failed == {BAD: "it died"}
    assert executor.names.count(BAD) == 4  # engine.retries is 3


@pytest.mark.usefixtures("blank_figures")
def test_a_full_disk_lets_nothing_more_begin(plan_of: PlanOf, tmp_path: Path) -> None:
    outcome, _, tracker = run_with_fakes(plan_of(), tmp_path, FakeExecutor(lost={BAD: ["disk"]}))
    assert outcome.failed == {BAD: "it died"}
    assert outcome.drain_reason == "a disk is full"
    assert tracker.status == "FAILED"


@pytest.mark.usefixtures("blank_figures")
def test_an_attempt_whose_driver_died_has_an_end_too(plan_of: PlanOf, tmp_path: Path) -> None:
    plan, ledger = plan_of(), Ledger(tmp_path)
    _, trial, attempt = make_jobs(plan, ledger, tmp_path)[2]
    ledger.record_start(trial, "small", attempt)
    ledger.record_start(trial, "another", attempt + 1)  # whose driver may well be alive
    run_with_fakes(plan_of(), tmp_path)
    history = Ledger(tmp_path)[trial.fingerprint].history
    assert {number: each.outcome for number, each in history.items()} == {
        1: "killed",
        2: None,
        3: "finished",
    }
    assert history[1].reason == UNRECORDED_END


def test_a_training_goes_on_with_a_smaller_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is decided by a stand-in for the GPU: two pairs at once do not."""
    from chip_core.training import policy

    forward = policy.Policy.forward

    def small(self: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        if len(batch.chosen.ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, *rest, **options)

    config = TrialConfig.model_validate(
        {
            "model": "shapes",
            "reference_cache": "off",
            "training": {"max_steps": 2, "batch_size": 4},
            "engine": {"micro_batch": 4, "threads": 1, "prefix_sharing": "off"},
        }
    )
    monkeypatch.setattr(policy.Policy, "forward", small)
    events: list[JobEvent] = []
    numbers = iter("23456")

    def retry(event: JobFailed) -> Job | None:
        retry_job = next_retry(event, lost_count=0)
        assert retry_job is not None
        name = f"x-{next(numbers)}"
        return Job(id=name, name="x", config=retry_job.config, folder=tmp_path / name,
                   notes=retry_job.notes)  # fmt: skip

    InlineExecutor().run(
        [Job(id="x-1", name="x", config=config, folder=tmp_path / "x-1")], events.append, retry
    )
    causes = [event.cause for event in events if isinstance(event, JobFailed)]
    assert causes == ["memory", "memory"]  # at 4 and at 2
    (finished,) = [event for event in events if isinstance(event, JobFinished)]
    assert finished.job.config.engine.micro_batch == 1
    assert finished.result.notes[1].startswith("micro-batch 1 instead of 2")


def test_memory_errors_are_told_from_others() -> None:
    assert failure_cause(MemoryFullError("x")) == "memory"
    assert failure_cause(OSError(28, "No space left on device")) == "disk"
    assert failure_cause(RuntimeError("No such thing")) == "trial_error"
    full = OSError(28, "No space left on device", "curves.jsonl")
    assert failure_reason(full) == (
        "a disk is full ([Errno 28] No space left on device: 'curves.jsonl'): free some space and "
        "run the study again"
    )
