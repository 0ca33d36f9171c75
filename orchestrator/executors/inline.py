"""Jobs one after another in this process: no Ray, the same figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        """Run all jobs in order."""
        for job in jobs:
            on_event(Started(job=job))
            try:
                result = execute(job, _reporter(job, on_event))
            except Exception as error:  # whatever a trial raises is its own failure
                keep_traceback(job)
                on_event(Failed(job=job, reason=reason_of(error)))
            else:
                on_event(Finished(job=job, result=result))


def _reporter(job: Job, on_event: Callable[[Event], None]) -> Callable[[Progress], None]:
    return lambda progress: on_event(Progressed(job=job, progress=progress))
