"""Run one phase of a study: its missing reference caches and its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.executors.base import Event, Executor, Failed, Job
from orchestrator.plan.plan import Trial
from orchestrator.runner.cache_build import CacheBuild, attach_caches, displayed_part
from orchestrator.runner.display import Display, display_for
from orchestrator.runner.recorder import Recorder
from orchestrator.state.cache_plan import PlannedCache

Wanted = Sequence[tuple[Job, Trial, int]]


class PhaseRun:
    """Runs a phase's jobs together, so that the slots that build caches also run trials.

    A trial starts when the caches that it reads are built, or at once if it reads none of them.
    """

    def __init__(
        self,
        wanted: Wanted,
        passes: Sequence[PlannedCache],
        *,
        study: str,
        storage: Path,
        recorder: Recorder,
        console: Console,
        made: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        """Create a phase without running it.

        Args:
            wanted: the trials' jobs, in order.
            passes: the passes that they read, from `plan_caches`.
            study: name of the study.
            storage: where caches and trials are.
            recorder: records the events of trials.
            console: where the progress is displayed.
            made: called with the records of the passes.
        """
        self._wanted, self._passes, self._storage = wanted, passes, storage
        self._recorder, self._console, self._made = recorder, console, made
        self._build = CacheBuild(passes, study=study, storage=storage, console=console)
        self._display: Display
        self._waiting: Wanted = ()  # trials that wait for caches

    def run(self, executor: Executor) -> None:
        """Run all jobs.

        Args:
            executor: within `opened`.

        Raises:
            KeyboardInterrupt: the user stopped it.
        """
        with self._build as build:
            parts = build.jobs(executor)
            if parts:
                reads = build.reads
                self._waiting = [each for each in self._wanted if each[1].fingerprint in reads]
                ready = [each for each in self._wanted if each[1].fingerprint not in reads]
            else:
                self._made(build.finish())
                ready = list(self._wanted)
            entries = [(job, displayed_part(job), 1) for job in parts]
            with display_for(self._console, [*entries, *self._wanted]) as self._display:
                jobs = [*parts, *self._with_caches(ready)]
                executor.run(jobs, self._take, self._retry, self._more)

    def _more(self) -> Sequence[Job] | None:
        """Return the trials that waited for caches once these are built; None before."""
        if not self._waiting:
            return ()
        if not self._build.ended:
            return None
        self._made(self._build.finish())
        waiting, self._waiting = self._waiting, ()
        return self._with_caches(waiting)

    def _with_caches(self, wanted: Wanted) -> list[Job]:
        attached = attach_caches(wanted, self._passes, self._storage)
        return [job for job, _, _ in attached]

    def _take(self, event: Event) -> None:
        if event.job.shard is not None:
            self._build.take(event)
        else:
            self._recorder.take(event)
        self._display.take(event)

    def _retry(self, failed: Failed) -> Job | None:
        of = self._build if failed.job.shard is not None else self._recorder
        return of.retry(failed)
