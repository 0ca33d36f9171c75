"""Turn what happens to jobs on Ray into events, and pass stop requests to the jobs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util import remove_placement_group

from chip_core.results import Progress, read_answered, read_result
from chip_core.utils.errors import StorageError
from orchestrator.executors.base import (
    STOP,
    Answered,
    EarlyStopped,
    Event,
    Failed,
    Finished,
    Job,
    More,
    Progressed,
    Retry,
    Started,
)
from orchestrator.executors.ray.job_process import HANG, Outcome
from orchestrator.jobs.attempt import Cause, reason_of
from orchestrator.jobs.stopping import Stop
from orchestrator.storage.channel import JobChannel
from orchestrator.study.early_stopping import EarlyStopping

#: Seconds after `engine.stall_after` for a hanging process to write its stacks and end itself.
_GRACE = 15.0
#: Largest interval between two checks, in seconds, that counts as time without a report.
_LOOK = 5.0
#: Why a process died that Ray killed for memory.
NO_MEMORY = "its machine ran out of memory"
#: Why it died otherwise, as far as is known.
DIED = "killed, out of memory, or crashed"


@dataclass(kw_only=True)
class Running:
    """A running job, and what its process reported last."""

    job: Job
    reported_at: float = field(default_factory=time.monotonic)
    last: Progress | None = None
    outcome: Outcome | None = None
    told_to_stop: bool = False
    process: tuple[str, int] | None = None  # (address of the node, process id)
    waited: float = 0.0  # seconds without a report while it was checked
    place: Any = None  # placement group of several workers

    def hanging_process(self) -> tuple[str, int] | None:
        """Return the job's process if it hangs and has not ended itself in time.

        A stopped process (SIGSTOP) does not end itself. Train monitors jobs of several workers.
        """
        stall_after = self.job.config.engine.stall_after
        if stall_after is None or self.job.workers > 1 or self.waited <= stall_after + _GRACE:
            return None
        return self.process


@dataclass(kw_only=True, eq=False)
class JobMonitor:
    """Turns reports of jobs into events."""

    on_event: Callable[[Event], None]
    retry: Retry | None
    begin_within: float
    stop: Stop
    channel: JobChannel
    rule: EarlyStopping | None
    error: Exception | None = None  # exception of `on_event` or `retry`
    running: dict[str, Running] = field(default_factory=dict)
    looked_at: float = field(default_factory=time.monotonic)

    @property
    def only_waiting(self) -> bool:
        """Whether the run should stop and no started job is left, which would end itself."""
        return self.stop.asked and not any(each.last for each in self.running.values())

    def look(self) -> None:
        """Kill hanging processes, and tell jobs if the run should stop.

        Jobs then write a checkpoint and end.
        """
        now = time.monotonic()
        passed, self.looked_at = min(now - self.looked_at, _LOOK), now
        for running in self.running.values():
            running.waited += passed
            process = running.hanging_process()
            if process is not None:
                end_process(*process)
                running.waited = 0.0  # wait again before the next try
        if not self.stop.asked:
            return
        for running in self.running.values():
            if running.last is not None and not running.told_to_stop:
                with contextlib.suppress(OSError, StorageError):  # tried again
                    self.channel.tell(running.job, STOP)
                    running.told_to_stop = True

    def begin(self, job: Job) -> None:
        """Record that a job has its process."""
        self.running[job.id] = Running(job=job)
        self.channel.begun(job)
        self._call(self.on_event, Started(job=job))

    def progress(self, job: Job, progress: Progress) -> None:
        """Record the progress of a job."""
        running = self.running[job.id]
        running.reported_at, running.last = time.monotonic(), progress
        running.waited = 0.0
        self._call(self.on_event, Progressed(job=running.job, progress=progress))

    def end(self, job: Job, died: str | None = None) -> Job | None:
        """Report how a job ended, and return its trial's next step or next attempt, if any.

        Args:
            job: the job.
            died: why its process died, if it did not end itself.
        """
        running = self.running.pop(job.id, None)
        if running is None:  # its process never started
            running = Running(job=job)
            self._call(self.on_event, Started(job=job))
        if running.place is not None:
            # If a slot ends before its workers, they keep their placement group: Train frees it
            # through Ray's dashboard, if there is one and no other Ray on the machine (Ray 2.60).
            remove_placement_group(running.place)
        away = self._away(job)
        result = read_result(job.folder)
        if result is not None:  # written last, so nothing is lost by what came after
            self._call(self.on_event, Finished(job=job, result=result))
            return None
        answered = None if job.scores else read_answered(job.folder)
        if answered is not None:  # likewise
            scoring = job.scoring()
            self._call(self.on_event, Answered(job=job, answered=answered, scoring=scoring))
            return scoring
        outcome = running.outcome
        ends_them = self.rule is not None and not self.stop.asked and not job.scores
        if outcome is None and died is None and ends_them:
            self._call(self.on_event, EarlyStopped(job=job, reason=self._cut(running)))
            return None
        if outcome is None or outcome.cause is None:
            reason, cause = self._unsaid(running, died)
            outcome = Outcome(reason=away or reason, cause=cause, from_outside=True)
        assert outcome.cause is not None
        failed = Failed(job=job, **vars(outcome))
        retry_job: Job | None = None
        # If the job's files cannot be read, another attempt would start from nothing.
        if self.retry is not None and not self.stop.no_more and away is None:
            retry_job = self._call(self.retry, failed)
        self._call(self.on_event, replace(failed, retry=retry_job))
        return retry_job

    def _unsaid(self, running: Running, died: str | None) -> tuple[str, Cause]:
        """Return the reason and cause of a job that ended without reporting them."""
        if died is None:
            if self.stop.asked:
                return "stopped before it began", "stopped"
            return f"its worker left no result in {running.job.folder}", "trial_error"
        silent = time.monotonic() - running.reported_at
        stall_after = running.job.config.engine.stall_after
        if running.last is None and silent > 0.95 * self.begin_within:
            return f"its worker did not begin within {self.begin_within:.0f} s", "worker_lost"
        if running.last is not None and stall_after is not None and silent > 0.95 * stall_after:
            where = f"{running.last.phase} {running.last.done}/{running.last.total}"
            reason = f"its worker hangs: no progress for {silent:.0f} s at {where}"
            left = running.job.folder / HANG
            known = left.exists() and left.stat().st_size > 0
            return (f"{reason} (where: {left})" if known else reason), "worker_lost"
        return f"the worker process died ({died})", "memory" if died == NO_MEMORY else "worker_lost"

    def _cut(self, running: Running) -> str:
        assert self.rule is not None
        if running.last is None:
            return f"cut by early stopping ({self.rule.words})"
        value = running.last.figures.get(self.rule.metric, math.nan)
        return (
            f"cut by early stopping ({self.rule.words}) at step {running.last.done} of "
            f"{running.last.total}, {self.rule.metric} {value:.4g}"
        )

    def _away(self, job: Job) -> str | None:
        """Fetch a job's files, and return why this is not possible, if so."""
        try:
            self.channel.ended(job)
        except (StorageError, OSError) as error:
            return f"{reason_of(error)}: give the same command again when it is back"
        return None

    def check(self) -> None:
        """Raise the exception of `on_event` or `retry`, if any."""
        if self.error is not None:
            raise self.error from None

    def asked(self, more: More) -> Sequence[Job] | None:
        """Return further jobs."""
        found: Sequence[Job] | None = self._call(more)
        return found

    def _call(self, function: Callable[..., Any], *given: Event) -> Any:
        """Call a callback. After an exception, which is kept, no callback is called any more."""
        if self.error is not None:
            return None
        try:
            return function(*given)
        except Exception as error:
            self.error = error
            raise


def end_process(node: str, pid: int) -> None:
    """Kill a process on a node of the cluster, by a task on that node."""

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    beside = {f"node:{node}": 0.001}
    ray.remote(kill).options(num_cpus=0, resources=beside, max_retries=0).remote()
