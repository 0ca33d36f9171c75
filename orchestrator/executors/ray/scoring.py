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
from orchestrator.executors.ray.job_process import LARGEST_SHARE, JobPayload, Outcome, run_job
from orchestrator.executors.ray.monitor import DIED, NO_MEMORY, JobMonitor

#: Seconds between two polls of scoring jobs, once no training is left.
_EVERY = 0.1
#: Seconds after which one more actor starts if the existing ones have not taken all jobs. An actor
#: takes about as long to start, and rules score a trial in less.
_ONE_MORE_AFTER = 3.0


class Scorer:
    """An actor that runs one job after another, so that imports are reused."""

    def run(self, payload: JobPayload) -> Iterator[tuple[str, int] | Progress | Outcome]:
        """Run a job, and yield the process, then the job's progress, and last its outcome."""
        yield ray.util.get_node_ip_address(), os.getpid()
        told: SimpleQueue[Progress | Outcome] = SimpleQueue()

        def work() -> None:
            told.put(run_job(payload, throttle(told.put)))

        threading.Thread(target=work, name="job", daemon=True).start()
        while True:
            yield (last := told.get())
            if isinstance(last, Outcome):
                return

    def large(self) -> bool:
        """Return whether this process is not to be used again."""
        return memory_share() > LARGEST_SHARE


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """A job that runs in an actor."""

    job: Job
    actor: Any
    reports: Any  # the ObjectRefGenerator of `Scorer.run`


class ScoringPool:
    """Runs jobs that score answers, at most one a core of this machine.

    They take no CPU of Ray's, or they would wait until the trainings, which hold them all, have
    ended. Use it as a context manager: at its end no actor is left.
    """

    def __init__(self, monitor: JobMonitor, payload: Callable[[Job], JobPayload]) -> None:
        """Nothing runs yet.

        Args:
            monitor: hears of the jobs.
            payload: makes what travels of a job.
        """
        self._monitor, self._payload = monitor, payload
        self._most = cpu_count()
        self._left: deque[Job] = deque()
        self._running: list[_Scoring] = []
        self._idle: list[Any] = []
        self._began = 0.0  # start of the last job

    def __enter__(self) -> ScoringPool:
        """Return itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End all actors."""
        for actor in (*self._idle, *(each.actor for each in self._running)):
            ray.kill(actor)

    def submit(self, job: Job) -> None:
        """Take a job; `poll` begins it."""
        self._left.append(job)

    def sorted_out(self, jobs: Sequence[Job]) -> list[Job]:
        """Take the jobs that score; return the others."""
        for job in jobs:
            if job.scores:
                self.submit(job)
        return [job for job in jobs if not job.scores]

    def finish(self) -> None:
        """Wait until all jobs have ended; where the run is to stop, those that have begun."""
        while self._left or self._running:
            self._monitor.look()
            self.poll()
            time.sleep(_EVERY)

    def poll(self) -> None:
        """Process the reports, and start jobs while there is room."""
        for each in list(self._running):
            self._hear(each)
        if self._monitor.stop.asked:
            self._left.clear()
        while self._left and (self._idle or self._needs_another()):
            self._begin(self._left.popleft())

    def _needs_another(self) -> bool:
        """Return whether one more actor is worth its start."""
        if not self._running:
            return True
        waited = time.monotonic() - self._began
        return waited > _ONE_MORE_AFTER and len(self._running) < self._most

    def _begin(self, job: Job) -> None:
        self._began = time.monotonic()
        actor = self._idle.pop() if self._idle else _actor()
        reports = actor.run.options(num_returns="streaming").remote(self._payload(job))
        self._running.append(_Scoring(job=job, actor=actor, reports=reports))
        self._monitor.begin(job)

    def _hear(self, each: _Scoring) -> None:
        while ray.wait([each.reports], timeout=0)[0]:
            try:
                told = ray.get(next(each.reports))
                running = self._monitor.running[each.job.id]
                if isinstance(told, tuple):
                    running.process = told
                    continue
                if isinstance(told, Progress):
                    self._monitor.progress(each.job, told)
                    continue
                running.outcome = told
                well, died = told.cause is None and not ray.get(each.actor.large.remote()), None
            except RayError as error:
                well, died = False, NO_MEMORY if isinstance(error, OutOfMemoryError) else DIED
            self._running.remove(each)
            if well:
                self._idle.append(each.actor)
            else:
                ray.kill(each.actor)
            retry_job = self._monitor.end(each.job, died)
            if retry_job is not None:
                self._left.appendleft(retry_job)
            return


def _actor() -> Any:
    """Start an actor on this machine, where the answers are."""
    here = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    return ray.remote(Scorer).options(num_cpus=0, scheduling_strategy=place).remote()
