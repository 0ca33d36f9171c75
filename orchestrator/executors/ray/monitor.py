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
    STOP_FILE,
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobSource,
    JobStarted,
    JobStoppedEarly,
    RetryPolicy,
)
from orchestrator.executors.ray.job_process import HANG_FILE, JobOutcome
from orchestrator.jobs.attempt import Cause, failure_reason
from orchestrator.jobs.job import StopRequest
from orchestrator.storage.channel import JobChannel
from orchestrator.study.early_stopping import EarlyStopping

#: Seconds after `engine.stall_after` for a hanging process to write its stacks and end itself.
_HANG_GRACE_SECONDS = 15.0
#: Largest interval between two checks, in seconds, that counts as time without a report.
_MAX_CHECK_INTERVAL = 5.0
#: Why a process died that Ray killed for memory.
OUT_OF_MEMORY_REASON = "its machine ran out of memory"
#: Why it died otherwise, as far as is known.
DIED_REASON = "killed, out of memory, or crashed"


@dataclass(kw_only=True)
class RunningJob:
    """A running job, and what its process reported last."""

    job: Job
    reported_at: float = field(default_factory=time.monotonic)
    last_progress: Progress | None = None
    outcome: JobOutcome | None = None
    stop_sent: bool = False
    process: tuple[str, int] | None = None  # (address of the node, process id)
    silent_seconds: float = 0.0  # seconds without a report while it was checked
    placement_group: Any = None  # placement group of several workers

    def hanging_process(self) -> tuple[str, int] | None:
        """Return the job's process if it hangs and has not ended itself in time.

        A stopped process (SIGSTOP) does not end itself. Train monitors jobs of several workers.
        """
        stall_after = self.job.config.engine.stall_after
        if (
            stall_after is None
            or self.job.num_workers > 1
            or self.silent_seconds <= stall_after + _HANG_GRACE_SECONDS
        ):
            return None
        return self.process


@dataclass(kw_only=True, eq=False)
class JobMonitor:
    """Turns reports of jobs into events."""

    on_event: Callable[[JobEvent], None]
    retry: RetryPolicy | None
    begin_within: float
    stop: StopRequest
    channel: JobChannel
    rule: EarlyStopping | None
    error: Exception | None = None  # exception of `on_event` or `retry`
    running: dict[str, RunningJob] = field(default_factory=dict)
    checked_at: float = field(default_factory=time.monotonic)

    @property
    def has_only_waiting(self) -> bool:
        """Whether the run should stop and no started job is left to end itself."""
        return self.stop.is_requested and not any(
            running_job.last_progress for running_job in self.running.values()
        )

    def check_jobs(self) -> None:
        """Kill hanging processes, and tell jobs if the run should stop.

        Jobs then write a checkpoint and end.
        """
        now = time.monotonic()
        elapsed, self.checked_at = min(now - self.checked_at, _MAX_CHECK_INTERVAL), now
        for running_job in self.running.values():
            running_job.silent_seconds += elapsed
            process = running_job.hanging_process()
            if process is not None:
                kill_process(*process)
                running_job.silent_seconds = 0.0  # wait again before the next try
        if not self.stop.is_requested:
            return
        for running_job in self.running.values():
            if running_job.last_progress is not None and not running_job.stop_sent:
                with contextlib.suppress(OSError, StorageError):  # tried again
                    self.channel.send_file(running_job.job, STOP_FILE)
                    running_job.stop_sent = True

    def on_start(self, job: Job) -> None:
        """Record that a job has its process."""
        self.running[job.id] = RunningJob(job=job)
        self.channel.register(job)
        self._call(self.on_event, JobStarted(job=job))

    def on_progress(self, job: Job, progress: Progress) -> None:
        """Record the progress of a job."""
        running_job = self.running[job.id]
        running_job.reported_at, running_job.last_progress = time.monotonic(), progress
        running_job.silent_seconds = 0.0
        self._call(self.on_event, JobProgressed(job=running_job.job, progress=progress))

    def on_end(self, job: Job, death_reason: str | None = None) -> Job | None:
        """Report how a job ended, and return its trial's next step or next attempt, if any.

        Args:
            job: the job.
            death_reason: why its process died, if it did not end itself.
        """
        running_job = self.running.pop(job.id, None)
        if running_job is None:  # its process never started
            running_job = RunningJob(job=job)
            self._call(self.on_event, JobStarted(job=job))
        if running_job.placement_group is not None:
            # If a slot ends before its workers, they keep their placement group: Train frees it
            # through Ray's dashboard, if there is one and no other Ray on the machine (Ray 2.60).
            remove_placement_group(running_job.placement_group)
        collect_problem = self._collect_files(job)
        result = read_result(job.folder)
        if result is not None:  # written last, so nothing is lost by what came after
            self._call(self.on_event, JobFinished(job=job, result=result))
            return None
        answered_trial = None if job.is_scoring else read_answered(job.folder)
        if answered_trial is not None:  # likewise
            scoring_job = job.scoring_job()
            self._call(
                self.on_event,
                JobAnswered(job=job, answered_trial=answered_trial, scoring_job=scoring_job),
            )
            return scoring_job
        outcome = running_job.outcome
        may_stop_early = self.rule is not None and not self.stop.is_requested and not job.is_scoring
        if outcome is None and death_reason is None and may_stop_early:
            self._call(
                self.on_event, JobStoppedEarly(job=job, reason=self._early_stop_reason(running_job))
            )
            return None
        if outcome is None or outcome.cause is None:
            reason, cause = self._infer_failure(running_job, death_reason)
            outcome = JobOutcome(reason=collect_problem or reason, cause=cause, from_outside=True)
        assert outcome.cause is not None
        failure = JobFailed(job=job, **vars(outcome))
        retry_job: Job | None = None
        # If the job's files cannot be read, another attempt would start from nothing.
        if self.retry is not None and not self.stop.is_draining and collect_problem is None:
            retry_job = self._call(self.retry, failure)
        self._call(self.on_event, replace(failure, retry_job=retry_job))
        return retry_job

    def _infer_failure(
        self, running_job: RunningJob, death_reason: str | None
    ) -> tuple[str, Cause]:
        """Return the reason and cause of a job that ended without reporting them."""
        if death_reason is None:
            if self.stop.is_requested:
                return "stopped before it began", "stopped"
            return f"its worker left no result in {running_job.job.folder}", "trial_error"
        silent_seconds = time.monotonic() - running_job.reported_at
        stall_after = running_job.job.config.engine.stall_after
        if running_job.last_progress is None and silent_seconds > 0.95 * self.begin_within:
            return f"its worker did not begin within {self.begin_within:.0f} s", "worker_lost"
        if (
            running_job.last_progress is not None
            and stall_after is not None
            and silent_seconds > 0.95 * stall_after
        ):
            position = (
                f"{running_job.last_progress.phase} "
                f"{running_job.last_progress.done}/{running_job.last_progress.total}"
            )
            reason = f"its worker hangs: no progress for {silent_seconds:.0f} s at {position}"
            hang_file = running_job.job.folder / HANG_FILE
            has_stacks = hang_file.exists() and hang_file.stat().st_size > 0
            return (f"{reason} (where: {hang_file})" if has_stacks else reason), "worker_lost"
        return (
            f"the worker process died ({death_reason})",
            "memory" if death_reason == OUT_OF_MEMORY_REASON else "worker_lost",
        )

    def _early_stop_reason(self, running_job: RunningJob) -> str:
        assert self.rule is not None
        if running_job.last_progress is None:
            return f"cut by early stopping ({self.rule.description})"
        value = running_job.last_progress.figures.get(self.rule.metric, math.nan)
        return (
            f"cut by early stopping ({self.rule.description}) at step "
            f"{running_job.last_progress.done} of "
            f"{running_job.last_progress.total}, {self.rule.metric} {value:.4g}"
        )

    def _collect_files(self, job: Job) -> str | None:
        """Fetch a job's files, and return why this is not possible, if so."""
        try:
            self.channel.collect(job)
        except (StorageError, OSError) as error:
            return f"{failure_reason(error)}: run the same command again when it is back"
        return None

    def raise_error(self) -> None:
        """Raise the exception of `on_event` or `retry`, if any."""
        if self.error is not None:
            raise self.error from None

    def fetch_jobs(self, job_source: JobSource) -> Sequence[Job] | None:
        """Return further jobs."""
        jobs: Sequence[Job] | None = self._call(job_source)
        return jobs

    def _call(self, function: Callable[..., Any], *arguments: JobEvent) -> Any:
        """Call a callback. After an exception, which is kept, no callback is called any more."""
        if self.error is not None:
            return None
        try:
            return function(*arguments)
        except Exception as error:
            self.error = error
            raise


def kill_process(node: str, pid: int) -> None:
    """Kill a process on a node of the cluster, by a task on that node."""

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    node_resource = {f"node:{node}": 0.001}
    ray.remote(kill).options(num_cpus=0, resources=node_resource, max_retries=0).remote()
