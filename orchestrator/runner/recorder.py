"""Record a run's events in the ledger, then show them in the tracker."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from orchestrator.executors.base import (
    Answered,
    EarlyStopped,
    Event,
    Failed,
    Finished,
    Job,
    Started,
)
from orchestrator.jobs.stopping import Stop
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
        stop: Stop,
        began: float | None,
    ) -> None:
        self._study, self._began = plan.study.name, began
        self._rule = plan.study.early_stopping
        self._ledger, self._storage, self._tracker = ledger, storage, tracker
        self._stop = stop
        self._opened: Plan | None = None
        self._jobs: dict[str, tuple[Trial, int]] = {}
        self._same: dict[str, list[Trial]] = {}
        self._running: set[str] = set()
        self._lost: dict[str, int] = {}  # how often a lost trial was retried
        self._lock = threading.Lock()
        self.executed = 0
        self.failed: dict[str, str] = {}

    def open(self, plan: Plan, jobs: list[tuple[Job, Trial, int]]) -> None:
        """Show a plan's finished trials in the tracker, and prepare for its jobs."""
        self._jobs = {job.id: (trial, attempt) for job, trial, attempt in jobs}
        if plan is self._opened:
            return
        self._opened, self._same = plan, {}
        for trial in all_trials(plan):
            self._same.setdefault(trial.fingerprint, []).append(trial)
        done = [trial for trial in all_trials(plan) if self._ledger[trial.fingerprint].done(trial)]
        views = [
            trial_view(trial, self._ledger, self._storage, self._study, "FINISHED")
            for trial in done
        ]
        self._tracker.open(plan, views, self._began)

    def take(self, event: Event) -> None:
        """Record an event."""
        with self._lock:
            trial, attempt = self._jobs[event.job.id]
            match event:
                case Started() if event.job.id in self._running:
                    pass  # a further step of a started attempt
                case Started():
                    self.executed += 1
                    self._running.add(event.job.id)
                    self._ledger.started(trial, self._study, attempt)
                    shown = trial_view(trial, self._ledger, self._storage, self._study, "RUNNING")
                    folders = list(dict.fromkeys([*shown.folders, event.job.folder]))
                    self._tracker.show(replace(shown, folders=folders, reused_from=None))
                case Answered(answered=answered, scoring=scoring):
                    folder = str(event.job.folder.relative_to(self._storage))
                    self._ledger.answered(trial, self._study, attempt, folder, answered)
                    self._jobs[scoring.id] = (trial, attempt)
                    self._running.discard(event.job.id)
                    self._running.add(scoring.id)
                case Finished(result=result):
                    self._running.discard(event.job.id)
                    folder = str(event.job.folder.relative_to(self._storage))
                    self._ledger.finished(trial, self._study, attempt, folder, result)
                    self._show(trial, "FINISHED")
                case Failed(reason=reason, cause="stopped"):
                    self._running.discard(event.job.id)
                    if self._stop.limit is not None:
                        reason = f"stopped at {self._stop.limit}, {reason}"
                    self._ledger.ended(trial, self._study, attempt, "killed", reason)
                    self._show(trial, "KILLED")
                case Failed(reason=reason, retry=retry_job):
                    self._running.discard(event.job.id)
                    self._ledger.ended(trial, self._study, attempt, "failed", reason)
                    if retry_job is None:
                        self.failed[trial.name] = reason
                        self._show(trial, "FAILED")
                    if event.cause == "disk":  # further attempts would fail, too
                        self._stop.drain("a disk is full")
                case EarlyStopped(reason=reason):
                    self._running.discard(event.job.id)
                    assert self._rule is not None, "nothing is cut without a rule"
                    self._ledger.cut(trial, self._study, attempt, self._rule, reason)
                    self._show(trial, "KILLED")

    def retry(self, failed: Failed) -> Job | None:
        """Return the next attempt of a trial, or None, and prepare for its events."""
        with self._lock:
            trial, _ = self._jobs[failed.job.id]
            job = next_retry(failed, lost=self._lost.get(trial.fingerprint, 0))
            if job is None:
                return None
            if job is failed.job:  # unchanged, so the worker was lost
                self._lost[trial.fingerprint] = self._lost.get(trial.fingerprint, 0) + 1
            job, attempt = next_attempt(job, trial, self._storage)
            self._jobs[job.id] = (trial, attempt)
            return job

    def stop(self, reason: str) -> None:
        """Record that the running trials were killed."""
        with self._lock:
            for job_id in sorted(self._running):
                trial, attempt = self._jobs[job_id]
                self._ledger.ended(trial, self._study, attempt, "killed", reason)
                self._show(trial, "KILLED")
            self._running.clear()

    def _show(self, trial: Trial, status: Status) -> None:
        for same in self._same[trial.fingerprint]:
            self._tracker.show(trial_view(same, self._ledger, self._storage, self._study, status))
