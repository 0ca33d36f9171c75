"""Limits of a run: it stops there, says what is left, and the next run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chip_core.results import Progress
from chip_core.utils.errors import ConfigError, UserError
from orchestrator.commands.studies import _merge_limits
from orchestrator.executors.base import Job, JobEvent, JobFailed, JobProgressed, JobStarted
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan
from orchestrator.report.writers.terminal import result_lines, resume_command
from orchestrator.run import RunOutcome, run_study
from orchestrator.runner.jobs import make_jobs
from orchestrator.runner.limits import LimitedExecutor
from orchestrator.state.ledger import Ledger
from orchestrator.study.limits import Limits
from orchestrator.study.model import Study

from ..conftest import STUDY
from ..fakes import FakeExecutor, FakeTracker

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")
FIRST, SECOND = "dpo, frozen, seed 0", "dpo, trained, seed 0"  # of 9 trials with the base


def run(
    plan: Plan, workdir: Path, limits: Limits | None, **given: object
) -> tuple[RunOutcome, FakeExecutor, FakeTracker]:
    executor, tracker = FakeExecutor(**given), FakeTracker()  # type: ignore[arg-type]
    stop = executor.stop
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: executor,
        tracker=tracker,
        console=Console(quiet=True),
        limits=limits,
        stop=stop,
    )
    return outcome, executor, tracker


def test_failures_stop_a_run_and_the_next_one_goes_on(plan_of: PlanOf, tmp_path: Path) -> None:
    failures = {FIRST: "the loss is nan", SECOND: "the loss is nan"}
    outcome, executor, tracker = run(plan_of(), tmp_path, Limits(max_failures=2), failures=failures)
    assert executor.names == ["base", FIRST, SECOND]
    assert outcome.limit == "max_failures 2"
    assert outcome.summary.remaining == 8  # of 9, the base is done
    assert tracker.status == "KILLED"
    told = [str(line) for line in result_lines(outcome, tmp_path, "there", "again", "sync")]
    assert "stopped at max_failures 2: 8 trials left; continue with: again" in told

    outcome, executor, tracker = run(plan_of(), tmp_path, Limits(max_failures=2))
    assert len(executor.names) == 8
    assert (outcome.limit, tracker.status) == (None, "FINISHED")


class Clock:
    """Half an hour passes whenever a job tells something."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class HourlyExecutor(FakeExecutor):
    """Jobs that take an hour: half an hour to the first progress, half an hour to the end."""

    clock: Clock

    def run(self, jobs, on_event, retry=None, more=None):  # type: ignore[no-untyped-def]
        def listener(event: JobEvent) -> None:
            if not isinstance(event, JobStarted) and event.job.shard is None:
                self.clock.seconds += 1800
            on_event(event)

        super().run(jobs, listener, retry, more)


def run_until_limit(plan: Plan, folder: Path, limits: Limits, gpus: float) -> tuple[list[str], str]:
    """Return what happened until the limit, and which it was."""
    jobs: list[Job] = []
    for job, _, _ in make_jobs(plan, Ledger(folder), folder):
        engine = job.config.engine.model_copy(update={"gpus_per_worker": gpus})
        jobs.append(replace(job, config=job.config.model_copy(update={"engine": engine})))
    executor = HourlyExecutor()
    executor.clock = Clock()
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        LimitedExecutor(executor, limits, executor.stop, executor.clock).run(
            jobs, lambda event: told.append(f"{type(event).__name__} {event.job.name}")
        )
    return told, str(executor.stop.limit)


def test_hours_count_from_the_first_trials_start(plan_of: PlanOf, tmp_path: Path) -> None:
    told, limit = run_until_limit(plan_of(), tmp_path, Limits(max_hours=1.5), gpus=0)
    assert limit == "max_hours 1.5"
    # base takes an hour; half an hour later the first training tells of itself
    assert told == ["JobStarted base", "JobProgressed base", "JobFinished base",
                    f"JobStarted {FIRST}", f"JobProgressed {FIRST}",
                    f"JobFailed {FIRST}"]  # fmt: skip


def test_nothing_begins_at_the_limit(plan_of: PlanOf, tmp_path: Path) -> None:
    told, _ = run_until_limit(plan_of(), tmp_path, Limits(max_hours=1.0), gpus=0)
    assert told[-1] == "JobFinished base"


def test_gpu_hours_are_those_that_jobs_hold(plan_of: PlanOf, tmp_path: Path) -> None:
    # Two GPUs: base 2 GPU hours, the first training 2; 1 more when the second tells of itself.
    told, limit = run_until_limit(plan_of(), tmp_path, Limits(max_gpu_hours=5.0), gpus=2)
    assert limit == "max_gpu_hours 5"
    assert told[-2:] == [f"JobProgressed {SECOND}", f"JobFailed {SECOND}"]


def test_gpu_hours_are_those_too_that_a_studys_server_holds(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    jobs = [job for job, _, _ in make_jobs(plan_of(), Ledger(tmp_path), tmp_path)]

    class Serving(HourlyExecutor):
        def reserve_gpus(self, gpus: int) -> AbstractContextManager[Sequence[str]]:
            return nullcontext([str(number) for number in range(gpus)])

    def until(limit: float, *, gpus: int, started: float) -> tuple[list[str], str | None]:
        """The jobs hold none; the server takes so many seconds to start."""
        executor, told = Serving(), list[str]()
        executor.clock = Clock()
        limits = Limits(max_gpu_hours=limit)
        limited = LimitedExecutor(executor, limits, executor.stop, executor.clock)
        with suppress(KeyboardInterrupt), limited.reserve_gpus(gpus) as devices:
            assert len(devices) == gpus
            executor.clock.seconds += started
            limited.run(jobs, lambda event: told.append(f"{type(event).__name__} {event.job.name}"))
        return told, executor.stop.limit

    # Three GPUs for an hour until the base has begun, and half an hour more until it tells.
    told, limit = until(4.5, gpus=3, started=3600)
    assert (told[:2], limit) == (["JobStarted base", "JobProgressed base"], "max_gpu_hours 4.5")
    assert until(4.5, gpus=3, started=3000)[0][-1] == "JobFinished base"
    assert until(4.5, gpus=0, started=3600)[1] is None


def run_timed(
    plan: Plan, workdir: Path, limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunOutcome, FakeTracker]:
    """Run a study by the clock of its trials."""
    executor, tracker = HourlyExecutor(), FakeTracker()
    executor.clock = Clock()
    monkeypatch.setattr(
        "orchestrator.run.LimitedExecutor",
        lambda inner, limits, stop: LimitedExecutor(inner, limits, stop, executor.clock),
    )
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: executor,
        tracker=tracker,
        console=Console(quiet=True),
        limits=limits,
        stop=executor.stop,
    )
    return outcome, tracker


def test_what_ran_at_the_limit_is_killed_with_the_limit_for_a_reason(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, tracker = run_timed(plan_of(), tmp_path, Limits(max_hours=1.5), monkeypatch)
    assert outcome.limit == "max_hours 1.5"
    assert outcome.failed == {}
    [killed] = [view for view in tracker.ended if view.status == "KILLED"]
    assert killed.trial.name == FIRST
    assert killed.reason == "stopped at max_hours 1.5, stopped after step 1 of 5"


def test_a_limit_that_the_last_trial_ends_at_stops_nothing(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(plan_of(), tmp_path, None, failures={SECOND: "once"})
    outcome, tracker = run_timed(plan_of(), tmp_path, Limits(max_hours=1.0), monkeypatch)
    assert (outcome.executed, outcome.summary.remaining) == (1, 0)
    assert (outcome.limit, tracker.status) == (None, "FINISHED")


def test_gpu_hours_of_a_study_without_gpus_are_refused(plan_of: PlanOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trial of this study uses a GPU"):
        run(plan_of(), tmp_path, Limits(max_gpu_hours=1.0))


def test_the_command_lines_limits_take_the_place_of_the_files(
    load: Callable[..., Study], plan_of: PlanOf
) -> None:
    written = load(STUDY + "limits: {max_hours: 12, max_failures: 3}\n").limits
    assert written == Limits(max_hours=12, max_failures=3)
    assert _merge_limits(written, max_hours=1.0, max_failures=None) == Limits(
        max_hours=1, max_failures=3
    )
    assert _merge_limits(None, max_hours=None) is None
    for wrong in ("{}", "{max_hours: 0}", "{max_failures: 0}", "{hours: 3}"):
        with pytest.raises(ConfigError, match="limits"):
            load(STUDY + f"limits: {wrong}\n")


def test_the_command_to_go_on_is_the_one_that_was_given_without_its_secrets() -> None:
    given = ["run", "encoder", "--set", "optimizer.betas=[0.9, 0.99]", "--tracking-uri"]
    assert resume_command([*given, "http://me:secret@there"]) == (
        "chip-ablate run encoder --set 'optimizer.betas=[0.9, 0.99]' --tracking-uri "
        "'http://me:***@there'"
    )
    assert resume_command(None) == "the same command"


def test_an_attempt_that_is_tried_again_counts_no_failure(plan_of: PlanOf, tmp_path: Path) -> None:
    limits = Limits(max_failures=1)
    outcome, executor, _ = run(plan_of(), tmp_path, limits, lost={FIRST: ["worker_lost"]})
    assert outcome.limit is None
    assert executor.names.count(FIRST) == 2
    assert outcome.summary.remaining == 0


def test_progress_of_a_pass_counts_no_failure(plan_of: PlanOf, tmp_path: Path) -> None:
    job = make_jobs(plan_of(), Ledger(tmp_path), tmp_path)[0][0]
    part = replace(job, shard=object())  # type: ignore[arg-type]

    class Failing(FakeExecutor):
        def run(self, jobs, on_event, retry=None, more=None):  # type: ignore[no-untyped-def]
            on_event(JobStarted(job=part))
            on_event(JobProgressed(job=part, progress=Progress(phase="start", done=0, total=1)))
            on_event(JobFailed(job=part, reason="nothing is computed here"))

    stop = StopRequest()
    LimitedExecutor(Failing(), Limits(max_failures=1), stop).run([part], lambda event: None)
    assert not stop.is_requested
