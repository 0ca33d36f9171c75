"""Record a run's events in the ledger, then show them in the tracker."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from orchestrator.executors.base import (
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobStarted,
    JobStoppedEarly,
)
from orchestrator.jobs.stopping import StopRequest
from orchestrator.plan.plan import Plan, Trial
from orchestrator.runner.jobs import next_attempt, trial_view
from orchestrator.runner.retries import next_retry
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import all_trials
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import Status


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
        for trial in all_trials(plan):
            self._trials_by_fingerprint.setdefault(trial.fingerprint, []).append(trial)
        finished_trials = [
            trial for trial in all_trials(plan) if self._ledger[trial.fingerprint].is_done(trial)
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
                    assert self._rule is not None, "nothing is cut without a rule"
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
