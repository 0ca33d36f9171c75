"""Stop a run at a limit. Running trials write a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from chip_core.utils.errors import UserError
from orchestrator.executors.base import (
    Event,
    Executor,
    Failed,
    Job,
    More,
    Progressed,
    Retry,
    Started,
)
from orchestrator.jobs.stopping import Stop
from orchestrator.plan.plan import Plan
from orchestrator.study.limits import Limits


def check_limits(limits: Limits, plan: Plan) -> None:
    """Check that every limit can be reached.

    Raises:
        UserError: GPU hours are limited, and no trial holds a GPU.
    """
    held = any(trial.config.engine.gpus_per_worker for trial in plan.trials)
    if limits.max_gpu_hours is not None and not held:
        raise UserError(
            "max_gpu_hours: no trial of this study asks for a GPU (engine.gpus_per_worker is 0): "
            "give max_hours"
        )


#: Key of the study's own server among the running jobs' ids.
_SERVER = "the study's server"


class LimitedExecutor:
    """Wraps an executor, and stops the run at its limits.

    Limits are checked at every event; a trial reports its progress about every second.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap an executor.

        Args:
            executor: what runs the jobs.
            limits: limits of the run.
            stop: stop request that the executor checks.
            clock: returns the time in seconds.
        """
        self._executor, self._limits, self._stop, self._clock = executor, limits, stop, clock
        self._began: float | None = None
        self._running: dict[str, tuple[float, float]] = {}  # start and number of GPUs, by job id
        self._gpu_seconds = 0.0  # of jobs that have ended
        self._failures = 0

    def opened(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """As the executor's."""
        return self._executor.opened(jobs)

    def slots(self, job: Job) -> int:
        """As the executor's."""
        return self._executor.slots(job)

    @contextmanager
    def reserved(self, gpus: int) -> Iterator[Sequence[str]]:
        """As the executor's; they count as held, whatever runs."""
        with self._executor.reserved(gpus) as devices:
            self._running[_SERVER] = self._clock(), float(len(devices))
            try:
                yield devices
            finally:
                self._end(_SERVER, self._clock())

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        retry: Retry | None = None,
        more: More | None = None,
    ) -> None:
        """Run all jobs, as the executor does.

        Raises:
            KeyboardInterrupt: a limit was reached, or the user stopped it.
        """

        def listener(event: Event) -> None:
            self._note(event)
            on_event(event)
            self._check()

        self._executor.run(jobs, listener, retry, more)

    def _note(self, event: Event) -> None:
        now = self._clock()
        if isinstance(event, Started):
            self._began = now if self._began is None else self._began
            self._running[event.job.id] = now, event.job.gpus
        elif not isinstance(event, Progressed):
            self._end(event.job.id, now)
            # An attempt that is retried does not count as a failure.
            self._failures += (
                isinstance(event, Failed) and event.job.shard is None and event.retry is None
            )

    def _end(self, holder: str, now: float) -> None:
        since, gpus = self._running.pop(holder)
        self._gpu_seconds += gpus * (now - since)

    def _check(self) -> None:
        now, limits = self._clock(), self._limits
        hours = (now - self._began) / 3600 if self._began is not None else 0.0
        held = sum(gpus * (now - since) for since, gpus in self._running.values())
        gpu_hours = (self._gpu_seconds + held) / 3600
        if limits.max_hours is not None and hours >= limits.max_hours:
            self._stop.ask(f"max_hours {limits.max_hours:g}")
        if limits.max_gpu_hours is not None and gpu_hours >= limits.max_gpu_hours:
            self._stop.ask(f"max_gpu_hours {limits.max_gpu_hours:g}")
        if limits.max_failures is not None and self._failures >= limits.max_failures:
            self._stop.ask(f"max_failures {limits.max_failures}")
