"""Run one phase of a study: its server, its missing reference caches and its trials, recorded.

Events are recorded in the ledger first, then shown in the tracker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from chip_core.evaluation.generators.choice import (
    is_servable,
    largest_rank,
    rank_problem,
)
from chip_core.utils.errors import TrialError, UserError
from orchestrator.executors.base import (
    Executor,
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStoppedEarly,
)
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan, Trial
from orchestrator.runner.cache_build import CacheBuild, attach_caches, displayed_shard
from orchestrator.runner.display import Display, make_display
from orchestrator.runner.jobs import next_attempt, trial_view
from orchestrator.runner.retries import next_retry
from orchestrator.state.cache_plan import PlannedCache
from orchestrator.state.ledger import Ledger
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import Status

TrialJobs = Sequence[tuple[Job, Trial, int]]


class PhaseRun:
    """Runs a phase's jobs together, so that the slots that build caches also run trials.

    A trial starts when the caches that it reads are built, or at once if it reads none of them.
    """

    def __init__(
        self,
        trial_jobs: TrialJobs,
        planned_caches: Sequence[PlannedCache],
        *,
        study: str,
        storage: Path,
        recorder: Recorder,
        console: Console,
        on_caches_finished: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        """Create a phase without running it.

        Args:
            trial_jobs: the trials' jobs, in order.
            planned_caches: the passes that they read, from `plan_caches`.
            study: name of the study.
            storage: where caches and trials are.
            recorder: records the events of trials.
            console: where the progress is displayed.
            on_caches_finished: called with the records of the passes.
        """
        self._trial_jobs, self._planned_caches, self._storage = trial_jobs, planned_caches, storage
        self._recorder, self._console = recorder, console
        self._on_caches_finished = on_caches_finished
        self._build = CacheBuild(planned_caches, study=study, storage=storage, console=console)
        self._display: Display
        self._waiting: TrialJobs = ()  # trials that wait for caches

    def run(self, executor: Executor) -> None:
        """Run all jobs.

        Args:
            executor: within `open`.

        Raises:
            KeyboardInterrupt: the user stopped it.
        """
        with self._build as build:
            build_jobs = build.make_jobs(executor)
            if build_jobs:
                waiting_fingerprints = build.reading_trials
                self._waiting = [
                    entry
                    for entry in self._trial_jobs
                    if entry[1].fingerprint in waiting_fingerprints
                ]
                ready_jobs = [
                    entry
                    for entry in self._trial_jobs
                    if entry[1].fingerprint not in waiting_fingerprints
                ]
            else:
                self._on_caches_finished(build.finish())
                ready_jobs = list(self._trial_jobs)
            entries = [(job, displayed_shard(job), 1) for job in build_jobs]
            with make_display(self._console, [*entries, *self._trial_jobs]) as self._display:
                jobs = [*build_jobs, *self._attach_caches(ready_jobs)]
                executor.run(jobs, self._on_event, self._retry, self._fetch_jobs)

    def _fetch_jobs(self) -> Sequence[Job] | None:
        """Return the trials that wait for caches once these are built; None before that."""
        if not self._waiting:
            return ()
        if not self._build.is_finished:
            return None
        self._on_caches_finished(self._build.finish())
        waiting, self._waiting = self._waiting, ()
        return self._attach_caches(waiting)

    def _attach_caches(self, trial_jobs: TrialJobs) -> list[Job]:
        attached = attach_caches(trial_jobs, self._planned_caches, self._storage)
        return [job for job, _, _ in attached]

    def _on_event(self, event: JobEvent) -> None:
        if event.job.shard is not None:
            self._build.on_event(event)
        else:
            self._recorder.on_event(event)
        self._display.on_event(event)

    def _retry(self, failure: JobFailed) -> Job | None:
        handler = self._build if failure.job.shard is not None else self._recorder
        return handler.retry(failure)


class Recorder:
    """Writes each event to the ledger first, then shows it in the tracker."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        storage: Path,
        tracker: Tracker,
        stop: StopRequest,
        started_at: float | None,
    ) -> None:
        self._study, self._started_at = plan.study.name, started_at
        self._rule = plan.study.early_stopping
        self._ledger, self._storage, self._tracker = ledger, storage, tracker
        self._stop = stop
        self._plan: Plan | None = None
        self._jobs: dict[str, tuple[Trial, int]] = {}
        self._trials_by_fingerprint: dict[str, list[Trial]] = {}
        self._running: set[str] = set()
        self._lost_counts: dict[str, int] = {}  # how often a lost trial was retried
        self._lock = threading.Lock()
        self.executed_count = 0
        self.failures: dict[str, str] = {}

    def open_plan(self, plan: Plan, jobs: list[tuple[Job, Trial, int]]) -> None:
        """Show a plan's finished trials in the tracker, and prepare for its jobs."""
        self._jobs = {job.id: (trial, attempt) for job, trial, attempt in jobs}
        if plan is self._plan:
            return
        self._plan, self._trials_by_fingerprint = plan, {}
        for trial in plan.all_trials:
            self._trials_by_fingerprint.setdefault(trial.fingerprint, []).append(trial)
        finished_trials = [
            trial for trial in plan.all_trials if self._ledger[trial.fingerprint].is_done(trial)
        ]
        views = [
            trial_view(trial, self._ledger, self._storage, self._study, "FINISHED")
            for trial in finished_trials
        ]
        self._tracker.open(plan, views, self._started_at)

    def on_event(self, event: JobEvent) -> None:
        """Record an event."""
        with self._lock:
            trial, attempt = self._jobs[event.job.id]
            match event:
                case JobStarted() if event.job.id in self._running:
                    pass  # a further step of a started attempt
                case JobStarted():
                    self.executed_count += 1
                    self._running.add(event.job.id)
                    self._ledger.record_start(trial, self._study, attempt)
                    view = trial_view(trial, self._ledger, self._storage, self._study, "RUNNING")
                    folders = list(dict.fromkeys([*view.folders, event.job.folder]))
                    self._tracker.show(replace(view, folders=folders, reused_from=None))
                case JobAnswered(answered_trial=answered, scoring_job=scoring):
                    folder = str(event.job.folder.relative_to(self._storage))
                    self._ledger.record_answers(trial, self._study, attempt, folder, answered)
                    self._jobs[scoring.id] = (trial, attempt)
                    self._running.discard(event.job.id)
                    self._running.add(scoring.id)
                case JobFinished(result=result):
                    self._running.discard(event.job.id)
                    folder = str(event.job.folder.relative_to(self._storage))
                    self._ledger.record_result(trial, self._study, attempt, folder, result)
                    self._show_trial(trial, "FINISHED")
                case JobFailed(reason=reason, cause="stopped"):
                    self._running.discard(event.job.id)
                    if self._stop.limit is not None:
                        reason = f"stopped at {self._stop.limit}, {reason}"
                    self._ledger.record_end(trial, self._study, attempt, "killed", reason)
                    self._show_trial(trial, "KILLED")
                case JobFailed(reason=reason, retry_job=retry_job):
                    self._running.discard(event.job.id)
                    self._ledger.record_end(trial, self._study, attempt, "failed", reason)
                    if retry_job is None:
                        self.failures[trial.name] = reason
                        self._show_trial(trial, "FAILED")
                    if event.cause == "disk":  # further attempts would fail, too
                        self._stop.drain("a disk is full")
                case JobStoppedEarly(reason=reason):
                    self._running.discard(event.job.id)
                    assert self._rule is not None, "no trial is cut without a rule"
                    self._ledger.record_early_stop(trial, self._study, attempt, self._rule, reason)
                    self._show_trial(trial, "KILLED")

    def retry(self, failure: JobFailed) -> Job | None:
        """Return the next attempt of a trial, or None, and prepare for its events."""
        with self._lock:
            trial, _ = self._jobs[failure.job.id]
            job = next_retry(failure, lost_count=self._lost_counts.get(trial.fingerprint, 0))
            if job is None:
                return None
            if job is failure.job:  # unchanged, so the worker was lost
                self._lost_counts[trial.fingerprint] = (
                    self._lost_counts.get(trial.fingerprint, 0) + 1
                )
            job, attempt = next_attempt(job, trial, self._storage)
            self._jobs[job.id] = (trial, attempt)
            return job

    def record_stop(self, reason: str) -> None:
        """Record that the running trials were killed."""
        with self._lock:
            for job_id in sorted(self._running):
                trial, attempt = self._jobs[job_id]
                self._ledger.record_end(trial, self._study, attempt, "killed", reason)
                self._show_trial(trial, "KILLED")
            self._running.clear()

    def _show_trial(self, trial: Trial, status: Status) -> None:
        for duplicate in self._trials_by_fingerprint[trial.fingerprint]:
            self._tracker.show(
                trial_view(duplicate, self._ledger, self._storage, self._study, status)
            )


@contextmanager
def run_study_server(
    plan: Plan, jobs: Sequence[Job], executor: Executor, folder: Path, stop: StopRequest
) -> Iterator[Path | None]:
    """Run a study's server, and yield the file with its address.

    It yields None if the study has none or no job would use it.

    Args:
        plan: the study's plan.
        jobs: the jobs of the first phase.
        executor: within `stack`; reserves the server's GPUs.
        folder: folder for the server's log.
        stop: whether the run should stop. If the server is lost for good, no new job starts.

    Raises:
        UserError: the server does not start, or not all jobs can reach it.
        KeyboardInterrupt: the run was stopped meanwhile.
    """
    config = plan.base.config
    if not config.evaluation.has_study_server or not any(_uses_server(job) for job in jobs):
        yield None
        return
    from chip_core.evaluation.generators.study_server import StudyServer  # it imports torch

    settings = config.evaluation.generator
    trained_configs = [trial.config for trial in plan.trials if not trial.untrained]
    rank = largest_rank([*trained_configs, *(job.config for job in jobs)])
    problem = rank_problem(rank)  # trials of a search belong to no arm yet
    if problem is not None:
        raise UserError(f"evaluation.generator.serves is study: {problem}")
    with ExitStack() as stack:
        devices = stack.enter_context(executor.reserve_gpus(settings.gpus))
        try:
            server = StudyServer(
                settings,
                config.model,
                folder,
                rank=rank,
                devices=devices,
                should_stop=lambda: stop.is_requested,
                on_lost=stop.drain,
            )
            stack.enter_context(server)
        except (TrialError, OSError) as error:
            if stop.is_requested:
                raise KeyboardInterrupt from None
            raise UserError(f"evaluation.generator.serves is study: {error}") from None
        yield server.address


def _uses_server(job: Job) -> bool:
    """Return whether a job uses the shared server."""
    return not job.is_scoring and (job.untrained or is_servable(job.config))
