"""Jobs one after another in this process: no Ray, the same figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chip_core.errors import UserError
from chip_core.results import Progress
from orchestrator.executors.base import (
    Event,
    Failed,
    Finished,
    Job,
    Progressed,
    Started,
    execute,
    keep_traceback,
    reason_of,
)


class InlineExecutor:
    """Runs jobs in the caller's thread."""

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs in order.

        Raises:
            UserError: a job needs more workers than this process.
        """
        most = max((job.workers for job in jobs), default=1)
        if most > 1:
            raise UserError(
                f"engine.workers_per_trial is {most}, and the inline executor has one process: "
                "use --executor ray, or set engine.workers_per_trial=1"
            )
        for job in jobs:
            on_event(Started(job=job))
            listener = _Listener(job, on_event)
            try:
                result = execute(job, listener)
            except Exception as error:  # whatever a trial raises is its own failure
                if error is listener.error:
                    raise  # what the listener raised is not
                keep_traceback(job)
                on_event(Failed(job=job, reason=reason_of(error)))
            else:
                on_event(Finished(job=job, result=result))


class _Listener:
    """Passes on a job's progress, and remembers what `on_event` raised."""

    def __init__(self, job: Job, on_event: Callable[[Event], None]) -> None:
        self.error: Exception | None = None
        self._job, self._on_event = job, on_event

    def __call__(self, progress: Progress) -> None:
        try:
            self._on_event(Progressed(job=self._job, progress=progress))
        except Exception as error:
            self.error = error
            raise
