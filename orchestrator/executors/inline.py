"""Run jobs one after another in this process, without Ray and with the same figures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from chip_core.results import AnsweredTrial, Progress, TrialResult
from chip_core.utils.errors import StorageError, UserError
from chip_core.utils.machine import free_memory
from orchestrator.executors.base import (
    ExecutorSettings,
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobSource,
    JobStarted,
    RetryPolicy,
)
from orchestrator.jobs.attempt import execute_job, failure_cause, failure_reason, save_traceback
from orchestrator.jobs.job import StopRequest
from orchestrator.storage.remote import RemoteStorage


def make_executor(settings: ExecutorSettings) -> InlineExecutor:
    """Create the executor of a study."""
    return InlineExecutor(settings.stop, workdir=settings.workdir, remote=settings.remote)


class InlineExecutor:
    """Runs jobs in the caller's thread."""

    def __init__(
        self,
        stop: StopRequest | None = None,
        *,
        workdir: Path | None = None,
        remote: RemoteStorage | None = None,
    ) -> None:
        """Create an executor.

        Args:
            stop: stop request, checked between jobs, and in a job between steps and batches.
            workdir: the work directory, which has the jobs' folders; required with `remote`.
            remote: storage for the jobs' files, if not the work directory.
        """
        self._stop = stop or StopRequest()
        self._workdir, self._remote = workdir, remote
        self._uses_gpu = True  # whether jobs use a GPU, if there is any

    def open(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """Check the jobs; there is nothing to open.

        Raises:
            UserError: a job needs more workers than this process.
        """
        _require_one_worker(jobs)
        self._uses_gpu = any(job.config.engine.device != "cpu" for job in jobs)
        return nullcontext()

    def count_slots(self, job: Job) -> int:
        """Return 1: jobs run one after another."""
        return 1

    @contextmanager
    def reserve_gpus(self, gpus: int) -> Iterator[Sequence[str]]:
        """Reserve the last GPUs that are visible to this process. Jobs use the first.

        Raises:
            UserError: there are not enough GPUs.
        """
        from chip_core.utils.machine import visible_gpus

        visible_devices = visible_gpus() if self._uses_gpu else []
        if visible_devices and len(visible_devices) <= gpus:
            raise UserError(
                f"evaluation.generator.serves is study: its server needs {gpus} GPU of its own "
                f"and the trials one, but this process sees {len(visible_devices)}: write serves: "
                "trial"
            )
        yield visible_devices[-gpus:] if visible_devices else ()

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        fetch_jobs: JobSource | None = None,
    ) -> None:
        """Run all jobs in order, and those that are added.

        Raises:
            UserError: a job needs more workers than this process.
            KeyboardInterrupt: the user stopped it.
        """
        queue = deque(jobs)
        _require_one_worker(jobs)
        while not self._stop.is_draining:
            if not queue:
                new_jobs = () if fetch_jobs is None else fetch_jobs()
                assert new_jobs is not None, "no running job is left to wait for"
                _require_one_worker(new_jobs)
                queue.extend(new_jobs)
                if not queue:
                    break
            job: Job | None = queue.popleft()
            while job is not None:
                job = self._run_job(job, on_event, retry)
        if self._stop.is_requested:
            raise KeyboardInterrupt

    def _run_job(
        self, job: Job, on_event: Callable[[JobEvent], None], retry: RetryPolicy | None
    ) -> Job | None:
        """Run a job, and return its trial's next step or next attempt, if any."""
        on_event(JobStarted(job=job))
        listener = _ProgressListener(job, on_event)
        try:
            result = self._execute(job, listener)
        except Exception as error:  # an exception of a trial is the trial's failure
            if error is listener.error:
                raise  # an exception of `on_event` is not
            save_traceback(job)
            failure = JobFailed(job=job, reason=failure_reason(error), cause=failure_cause(error))
            retry_job = None if retry is None or self._stop.is_draining else retry(failure)
            free_memory()
            on_event(replace(failure, retry_job=retry_job))
            return retry_job
        if isinstance(result, AnsweredTrial):
            scoring_job = job.scoring_job()
            on_event(JobAnswered(job=job, answered_trial=result, scoring_job=scoring_job))
            return scoring_job
        on_event(JobFinished(job=job, result=result))
        return None

    def _execute(self, job: Job, listener: _ProgressListener) -> TrialResult | AnsweredTrial:
        if self._remote is None:
            return execute_job(job, listener, lambda: self._stop.is_requested)
        from orchestrator.storage.channel import RemoteJobChannel
        from orchestrator.storage.staging import StagingSpec

        assert self._workdir is not None
        workdir = self._workdir.absolute()
        spec = StagingSpec.for_attempt(job, self._remote, workdir)
        channel = RemoteJobChannel(self._remote, workdir)
        try:
            with spec.workspace(job.folder) as workspace:
                result = execute_job(
                    workspace.stage(job, listener), listener, lambda: self._stop.is_requested
                )
        except BaseException:
            with suppress(StorageError):  # keep the job's own exception
                channel.collect(job)
            raise
        channel.collect(job)
        return result


def _require_one_worker(jobs: Sequence[Job]) -> None:
    num_workers = max((job.num_workers for job in jobs), default=1)
    if num_workers > 1:
        raise UserError(
            f"engine.workers_per_trial is {num_workers}, and the inline executor has one process: "
            "use --executor ray, or set engine.workers_per_trial=1"
        )


class _ProgressListener:
    """Forwards a job's progress, and keeps the exception that `on_event` raised."""

    def __init__(self, job: Job, on_event: Callable[[JobEvent], None]) -> None:
        self.error: Exception | None = None
        self._job, self._on_event = job, on_event

    def __call__(self, progress: Progress) -> None:
        try:
            self._on_event(JobProgressed(job=self._job, progress=progress))
        except Exception as error:
            self.error = error
            raise
