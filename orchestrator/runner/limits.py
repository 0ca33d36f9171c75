"""Stop a run at a limit. Running trials write a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from chip_core.utils.errors import UserError
from orchestrator.executors.base import (
    Executor,
    Job,
    JobEvent,
    JobFailed,
    JobProgressed,
    JobSource,
    JobStarted,
    RetryPolicy,
)
from orchestrator.jobs.job import StopRequest
from orchestrator.plan.plan import Plan
from orchestrator.study.limits import Limits


def check_limits(limits: Limits, plan: Plan) -> None:
    """Check that every limit can be reached.

    Raises:
        UserError: GPU hours are limited, and no trial holds a GPU.
    """
    uses_gpu = any(trial.config.engine.gpus_per_worker for trial in plan.trials)
    if limits.max_gpu_hours is not None and not uses_gpu:
        raise UserError(
            "max_gpu_hours: no trial of this study uses a GPU (engine.gpus_per_worker is 0): use "
            "max_hours instead"
        )


#: Key of the study's own server among the running jobs' ids.
_SERVER_ID = "the study's server"


class LimitedExecutor:
    """Wraps an executor, and stops the run at its limits.

    Limits are checked at every event; a trial reports its progress about every second.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        stop: StopRequest,
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
        self._start_time: float | None = None
        self._running: dict[str, tuple[float, float]] = {}  # start and number of GPUs, by job id
        self._gpu_seconds = 0.0  # of jobs that have ended
        self._failures = 0

    def open(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """As the executor's."""
        return self._executor.open(jobs)

    def count_slots(self, job: Job) -> int:
        """As the executor's."""
        return self._executor.count_slots(job)

    @contextmanager
    def reserve_gpus(self, gpus: int) -> Iterator[Sequence[str]]:
        """As the executor's; these GPUs count as held, even if nothing runs."""
        with self._executor.reserve_gpus(gpus) as devices:
            self._running[_SERVER_ID] = self._clock(), float(len(devices))
            try:
                yield devices
            finally:
                self._end_holder(_SERVER_ID, self._clock())

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        fetch_jobs: JobSource | None = None,
    ) -> None:
        """Run all jobs, as the executor does.

        Raises:
            KeyboardInterrupt: a limit was reached, or the user stopped it.
        """

        def listener(event: JobEvent) -> None:
            self._record_event(event)
            on_event(event)
            self._check_limits()

        self._executor.run(jobs, listener, retry, fetch_jobs)

    def _record_event(self, event: JobEvent) -> None:
        now = self._clock()
        if isinstance(event, JobStarted):
            self._start_time = now if self._start_time is None else self._start_time
            self._running[event.job.id] = now, event.job.num_gpus
        elif not isinstance(event, JobProgressed):
            self._end_holder(event.job.id, now)
            # An attempt that is retried does not count as a failure.
            self._failures += (
                isinstance(event, JobFailed) and event.job.shard is None and event.retry_job is None
            )

    def _end_holder(self, holder: str, now: float) -> None:
        started_at, gpus = self._running.pop(holder)
        self._gpu_seconds += gpus * (now - started_at)

    def _check_limits(self) -> None:
        now, limits = self._clock(), self._limits
        hours = (now - self._start_time) / 3600 if self._start_time is not None else 0.0
        running_gpu_seconds = sum(
            gpus * (now - started_at) for started_at, gpus in self._running.values()
        )
        gpu_hours = (self._gpu_seconds + running_gpu_seconds) / 3600
        if limits.max_hours is not None and hours >= limits.max_hours:
            self._stop.request(f"max_hours {limits.max_hours:g}")
        if limits.max_gpu_hours is not None and gpu_hours >= limits.max_gpu_hours:
            self._stop.request(f"max_gpu_hours {limits.max_gpu_hours:g}")
        if limits.max_failures is not None and self._failures >= limits.max_failures:
            self._stop.request(f"max_failures {limits.max_failures}")
