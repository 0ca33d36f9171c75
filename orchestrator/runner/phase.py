"""Run one phase of a study: its missing reference caches and its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.executors.base import Executor, Job, JobEvent, JobFailed
from orchestrator.plan.plan import Trial
from orchestrator.runner.cache_build import CacheBuild, attach_caches, displayed_shard
from orchestrator.runner.display import Display, make_display
from orchestrator.runner.recorder import Recorder
from orchestrator.state.cache_plan import PlannedCache

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
        """Return the trials that waited for caches once these are built; None before."""
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
