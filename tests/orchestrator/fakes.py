"""An executor that trains nothing and a tracker that only notes: for what stands around them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from chip_core.results import (
    MODEL,
    AnsweredTrial,
    Answers,
    Evaluation,
    Progress,
    TrialResult,
    hash_files,
    write_answered,
    write_result,
)
from chip_core.utils.files import write_json
from orchestrator.executors.base import (
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobSource,
    JobStarted,
    RetryPolicy,
)
from orchestrator.jobs.attempt import Cause
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.results import RunOutcome
from orchestrator.run import run_study
from orchestrator.tracking.projection import MlflowProjection
from orchestrator.tracking.views import (
    ArmView,
    FinalSnapshot,
    Status,
    StudyView,
    TrackingState,
    TrialView,
)


def make_result(job: Job) -> TrialResult:
    """Make figures that are a function of the job: chair_i = 10 + seed, less 2 under chip."""
    config = job.config
    chair = 30.0 if job.untrained else 10.0 + config.seed
    chair -= 2.0 * (config.objective.preset == "chip" and not job.untrained)
    evaluations = {}
    for side in ("select", "report"):
        for settings in getattr(config.benchmarks, side):
            prefix = "select/" if side == "select" else ""
            evaluations[f"{side}/{settings.name}"] = Evaluation(
                metrics={f"{prefix}{settings.name}/chair_i": chair},
                items=4,
                scores=f"scores/{side}-{settings.name}.json",
                responses=f"responses/{side}-{settings.name}.jsonl",
            )
    trained = not (job.untrained or job.trained_model)
    steps = 5 if trained and job.answers in (None, job.folder) else 0
    return TrialResult(steps=steps, evaluations=evaluations, seconds={"train": 1.0})


@dataclass
class FakeExecutor:
    """Ends each job at once as `failures` and `interrupt_before` say."""

    failures: dict[str, str] = field(default_factory=dict)  # job name -> reason
    lost: dict[str, list[Cause]] = field(default_factory=dict)  # what its attempts end by, in order
    interrupt_before: str | None = None  # job name at which the user presses Ctrl-C
    answers: Collection[str] = ()  # names of jobs whose answers are scored by a job of their own
    interrupt_scoring: str | None = None  # likewise, before its answers are scored
    jobs: list[Job] = field(default_factory=list)
    parts: list[Job] = field(default_factory=list)  # of reference passes; none can be made
    at_once: int = 1
    stop: StopRequest = field(default_factory=StopRequest)

    def open(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        return nullcontext()

    def count_slots(self, job: Job) -> int:
        return self.at_once

    def reserve_gpus(self, gpus: int) -> AbstractContextManager[Sequence[str]]:
        return nullcontext(())

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        more: JobSource | None = None,
    ) -> None:
        left = deque(jobs)
        while not self.stop.is_draining:
            if not left:
                left.extend((more() if more is not None else None) or ())
            if not left:
                break
            job = left.popleft()
            if job.shard is not None:
                self.parts.append(job)
                on_event(JobStarted(job=job))
                on_event(JobFailed(job=job, reason="nothing is computed here"))
                continue
            self.jobs.append(job)
            on_event(JobStarted(job=job))
            if job.name == (self.interrupt_scoring if job.is_scoring else self.interrupt_before):
                raise KeyboardInterrupt
            progress = Progress(phase="train", done=1, total=5, figures={"loss": 0.5})
            on_event(JobProgressed(job=job, progress=progress))
            if self.stop.is_requested:
                on_event(JobFailed(job=job, reason="stopped after step 1 of 5", cause="stopped"))
                break
            if job.name in self.failures:
                on_event(JobFailed(job=job, reason=self.failures[job.name]))
                continue
            if self.lost.get(job.name):
                cause, failed = self.lost[job.name].pop(0), JobFailed(job=job, reason="it died")
                failed = replace(failed, cause=cause)
                retry_job = None if retry is None else retry(failed)
                on_event(replace(failed, retry_job=retry_job))
                left.extendleft([] if retry_job is None else [retry_job])
                continue
            if job.name in self.answers and not job.is_scoring:
                scoring = job.scoring_job()
                on_event(
                    JobAnswered(job=job, answered_trial=write_job_answers(job), scoring_job=scoring)
                )
                left.appendleft(scoring)
                continue
            on_event(JobFinished(job=job, result=write_job_result(job)))
        if self.stop.is_requested:
            raise KeyboardInterrupt

    @property
    def names(self) -> list[str]:
        return [job.name for job in self.jobs]


def write_job_answers(job: Job) -> AnsweredTrial:
    """Leave what a worker leaves whose trial has answered and is not scored."""
    result = make_result(job)
    if result.steps:
        os.makedirs(job.folder / MODEL)
    answers = {
        key: Answers(items=evaluation.items, responses=evaluation.responses)
        for key, evaluation in result.evaluations.items()
    }
    answered = AnsweredTrial(steps=result.steps, answers=answers, evaluations={}, seconds={})
    write_answered(job.folder, answered)
    return answered


def write_job_result(job: Job) -> TrialResult:
    """Leave what a worker leaves."""
    result = make_result(job)
    if result.steps:
        os.makedirs(job.folder / MODEL, exist_ok=True)
    for evaluation in result.evaluations.values():
        metrics = []
        for value in evaluation.metrics.values():  # one, or none where it is undefined
            items = [{"item": str(i), "numerator": value, "denominator": 100.0} for i in range(4)]
            metrics.append({"name": "chair_i", "value": value, "items": items})
        write_json(job.folder / evaluation.scores, {"metrics": metrics})
    scores = [evaluation.scores for evaluation in result.evaluations.values()]
    result = replace(result, files=hash_files(job.folder, scores))
    write_result(job.folder, result)
    return result


@dataclass
class FakeTracker:
    """Notes what it is told."""

    opened: list[TrialView] = field(default_factory=list)
    started: list[Trial] = field(default_factory=list)
    ended: list[TrialView] = field(default_factory=list)
    arms: Sequence[ArmView] = ()
    status: Status | None = None
    address: str = "nowhere"

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        self.opened = list(done)

    def show(self, view: TrialView) -> None:
        if view.status == "RUNNING":
            self.started.append(view.trial)
        else:
            self.ended.append(view)

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        self.arms, self.status = arms, status

    def confirm(self) -> None:
        pass

    def state(self) -> TrackingState:
        return TrackingState(pending=None, refused={}, compare=None)


class InlineTracker(MlflowProjection):
    """Projects each change at once, without a thread."""

    study: StudyView

    @property
    def address(self) -> str:
        return self.store.address

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        self._update(StudyView(plan=plan, began=began, trials={view.key: view for view in done}))

    def confirm(self) -> None:
        pass

    def show(self, view: TrialView) -> None:
        self._update(replace(self.study, trials={**self.study.trials, view.key: view}))

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        end = FinalSnapshot(time=time.time(), status=status, ended=ended, arms=tuple(arms))
        self._update(replace(self.study, ends=(end,), report=report))

    def _update(self, study: StudyView) -> None:
        self.study = study
        self.reconcile(study)


def run_with_fakes(
    plan: Plan, workdir: Path, executor: FakeExecutor | None = None
) -> tuple[RunOutcome, FakeExecutor, FakeTracker]:
    """Run a study on a fake executor; return its outcome, the executor and the tracker."""
    executor, tracker = executor or FakeExecutor(), FakeTracker()
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: executor,
        tracker=tracker,
        console=Console(quiet=True),
    )
    return outcome, executor, tracker
