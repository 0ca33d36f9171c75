"""Score answers parallel to trainings, in actors on the driver's machine without GPU or model."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chip_core.results import Progress
from chip_core.trial_context import throttle
from chip_core.utils.machine import cpu_count, memory_share
from orchestrator.executors.base import Job
from orchestrator.executors.ray.job_process import MAX_MEMORY_SHARE, JobOutcome, JobPayload, run_job
from orchestrator.executors.ray.monitor import DIED_REASON, OUT_OF_MEMORY_REASON, JobMonitor

#: Seconds between two polls of scoring jobs, once no training is left.
_POLL_SECONDS = 0.1
#: Seconds after which one more actor starts if the existing ones have not taken all jobs. An actor
#: takes about as long to start, and rules score a trial in less.
_SCALE_UP_SECONDS = 3.0


class Scorer:
    """An actor that runs one job after another, so that imports are reused."""

    def run(self, payload: JobPayload) -> Iterator[tuple[str, int] | Progress | JobOutcome]:
        """Run a job, and yield the process, then the job's progress, and last its outcome."""
        yield ray.util.get_node_ip_address(), os.getpid()
        reports: SimpleQueue[Progress | JobOutcome] = SimpleQueue()

        def run_and_report() -> None:
            reports.put(run_job(payload, throttle(reports.put)))

        threading.Thread(target=run_and_report, name="job", daemon=True).start()
        while True:
            yield (report := reports.get())
            if isinstance(report, JobOutcome):
                return

    def is_too_large(self) -> bool:
        """Return whether this process must not be reused."""
        return memory_share() > MAX_MEMORY_SHARE


@dataclass(frozen=True, kw_only=True)
class _ScoringJob:
    """A job that runs in an actor."""

    job: Job
    actor: Any
    reports: Any  # the ObjectRefGenerator of `Scorer.run`


class ScoringPool:
    """Runs jobs that score answers, at most one per core of this machine.

    They request no CPU from Ray: otherwise they would wait until the trainings, which hold all
    CPUs, have ended. Use it as a context manager: at its end no actor is left.
    """

    def __init__(self, monitor: JobMonitor, payload: Callable[[Job], JobPayload]) -> None:
        """Create it without starting an actor.

        Args:
            monitor: receives the jobs' reports.
            payload: creates the payload of a job.
        """
        self._monitor, self._payload = monitor, payload
        self._max_actors = cpu_count()
        self._queue: deque[Job] = deque()
        self._running: list[_ScoringJob] = []
        self._idle: list[Any] = []
        self._last_start = 0.0  # start of the last job

    def __enter__(self) -> ScoringPool:
        """Return itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End all actors."""
        for actor in (*self._idle, *(scoring_job.actor for scoring_job in self._running)):
            ray.kill(actor)

    def submit(self, job: Job) -> None:
        """Add a job; `poll` starts it."""
        self._queue.append(job)

    def take_scoring_jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """Add the scoring jobs and return the others."""
        for job in jobs:
            if job.is_scoring:
                self.submit(job)
        return [job for job in jobs if not job.is_scoring]

    def finish(self) -> None:
        """Wait until all jobs have ended, or, if the run should stop, those that have started."""
        while self._queue or self._running:
            self._monitor.check_jobs()
            self.poll()
            time.sleep(_POLL_SECONDS)

    def poll(self) -> None:
        """Process the reports, and start jobs while there is room."""
        for scoring_job in list(self._running):
            self._process_reports(scoring_job)
        if self._monitor.stop.is_requested:
            self._queue.clear()
        while self._queue and (self._idle or self._needs_more_actors()):
            self._start_job(self._queue.popleft())

    def _needs_more_actors(self) -> bool:
        """Return whether one more actor is worth starting."""
        if not self._running:
            return True
        elapsed = time.monotonic() - self._last_start
        return elapsed > _SCALE_UP_SECONDS and len(self._running) < self._max_actors

    def _start_job(self, job: Job) -> None:
        self._last_start = time.monotonic()
        actor = self._idle.pop() if self._idle else _create_actor()
        reports = actor.run.options(num_returns="streaming").remote(self._payload(job))
        self._running.append(_ScoringJob(job=job, actor=actor, reports=reports))
        self._monitor.on_start(job)

    def _process_reports(self, scoring_job: _ScoringJob) -> None:
        while ray.wait([scoring_job.reports], timeout=0)[0]:
            try:
                report = ray.get(next(scoring_job.reports))
                running_job = self._monitor.running[scoring_job.job.id]
                if isinstance(report, tuple):
                    running_job.process = report
                    continue
                if isinstance(report, Progress):
                    self._monitor.on_progress(scoring_job.job, report)
                    continue
                running_job.outcome = report
                death_reason = None
                is_reusable = report.cause is None and not ray.get(
                    scoring_job.actor.is_too_large.remote()
                )
            except RayError as error:
                is_reusable = False
                out_of_memory = isinstance(error, OutOfMemoryError)
                death_reason = OUT_OF_MEMORY_REASON if out_of_memory else DIED_REASON
            self._running.remove(scoring_job)
            if is_reusable:
                self._idle.append(scoring_job.actor)
            else:
                ray.kill(scoring_job.actor)
            retry_job = self._monitor.on_end(scoring_job.job, death_reason)
            if retry_job is not None:
                self._queue.appendleft(retry_job)
            return


def _create_actor() -> Any:
    """Start an actor on this machine, where the answers are."""
    node_id = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(Scorer).options(num_cpus=0, scheduling_strategy=strategy).remote()
