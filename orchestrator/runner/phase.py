"""Run one phase of a study: the reference caches that are missing, and the trials."""

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
    """Runs a phase's jobs in one go, so that the slots that build caches run the trials too.

    A trial begins when what it reads is there; one that reads nothing of it, at once.
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
        """Nothing runs yet.

        Args:
            wanted: the trials' jobs, in their order.
            passes: what they read, of `plan_caches`.
            study: its name.
            storage: where caches and trials lie.
            recorder: notes what becomes of trials.
            console: where progress goes.
            made: is told what became of the passes.
        """
        self._wanted, self._passes, self._storage = wanted, passes, storage
        self._recorder, self._console, self._made = recorder, console, made
        self._build = CacheBuild(passes, study=study, storage=storage, console=console)
        self._display: Display
        self._waiting: Wanted = ()  # for caches

    def run(self, executor: Executor) -> None:
        """Run all.

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
        """Return the trials that waited for caches, once these are made."""
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
