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
    Answered,
    Event,
    ExecutorSettings,
    Failed,
    Finished,
    Job,
    More,
    Progressed,
    Retry,
    Started,
)
from orchestrator.jobs.attempt import cause_of, execute, keep_traceback, reason_of
from orchestrator.jobs.stopping import Stop
from orchestrator.storage.remote import Remote


def make_executor(settings: ExecutorSettings) -> InlineExecutor:
    """Create the executor of a study."""
    return InlineExecutor(settings.stop, workdir=settings.workdir, remote=settings.remote)


class InlineExecutor:
    """Runs jobs in the caller's thread."""

    def __init__(
        self,
        stop: Stop | None = None,
        *,
        workdir: Path | None = None,
        remote: Remote | None = None,
    ) -> None:
        """Create an executor.

        Args:
            stop: stop request, checked between jobs, and in a job between steps and batches.
            workdir: the work directory, which has the jobs' folders; required with `remote`.
            remote: storage for the jobs' files, if not the work directory.
        """
        self._stop = stop or Stop()
        self._workdir, self._remote = workdir, remote
        self._on_gpu = True  # whether jobs use a GPU, if there is any

    def opened(self, jobs: Sequence[Job]) -> AbstractContextManager[None]:
        """Check the jobs; there is nothing to open.

        Raises:
            UserError: a job needs more workers than this process.
        """
        _require_one_worker(jobs)
        self._on_gpu = any(job.config.engine.device != "cpu" for job in jobs)
        return nullcontext()

    def slots(self, job: Job) -> int:
        """Return 1: jobs run one after another."""
        return 1

    @contextmanager
    def reserved(self, gpus: int) -> Iterator[Sequence[str]]:
        """Reserve the last GPUs that are visible to this process. Jobs use the first.

        Raises:
            UserError: there are not enough GPUs.
        """
        from chip_core.utils.machine import visible_gpus

        there = visible_gpus() if self._on_gpu else []
        if there and len(there) <= gpus:
            raise UserError(
                f"evaluation.generator.serves is study: its server takes {gpus} GPU of its "
                f"own, the trials one, and this process sees {len(there)}: write serves: trial"
            )
        yield there[-gpus:] if there else ()

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        retry: Retry | None = None,
        more: More | None = None,
    ) -> None:
        """Run all jobs in order, and those that are added.

        Raises:
            UserError: a job needs more workers than this process.
            KeyboardInterrupt: the user stopped it.
        """
        left = deque(jobs)
        _require_one_worker(jobs)
        while not self._stop.no_more:
            if not left:
                following = () if more is None else more()
                assert following is not None, "nothing runs that is to be waited for"
                _require_one_worker(following)
                left.extend(following)
                if not left:
                    break
            job: Job | None = left.popleft()
            while job is not None:
                job = self._run(job, on_event, retry)
        if self._stop.asked:
            raise KeyboardInterrupt

    def _run(self, job: Job, on_event: Callable[[Event], None], retry: Retry | None) -> Job | None:
        """Run a job, and return its trial's next step or next attempt, if any."""
        on_event(Started(job=job))
        listener = _Listener(job, on_event)
        try:
            result = self._execute(job, listener)
        except Exception as error:  # an exception of a trial is the trial's failure
            if error is listener.error:
                raise  # an exception of the listener is not
            keep_traceback(job)
            failed = Failed(job=job, reason=reason_of(error), cause=cause_of(error))
            retry_job = None if retry is None or self._stop.no_more else retry(failed)
            free_memory()
            on_event(replace(failed, retry=retry_job))
            return retry_job
        if isinstance(result, AnsweredTrial):
            scoring = job.scoring()
            on_event(Answered(job=job, answered=result, scoring=scoring))
            return scoring
        on_event(Finished(job=job, result=result))
        return None

    def _execute(self, job: Job, listener: _Listener) -> TrialResult | AnsweredTrial:
        if self._remote is None:
            return execute(job, listener, lambda: self._stop.asked)
        from orchestrator.storage.channel import RemoteJobChannel
        from orchestrator.storage.staging import StagingSpec

        assert self._workdir is not None
        workdir = self._workdir.absolute()
        spec = StagingSpec.for_attempt(job, self._remote, workdir)
        channel = RemoteJobChannel(self._remote, workdir)
        try:
            with spec.workspace(job.folder) as workspace:
                result = execute(
                    workspace.brought(job, listener), listener, lambda: self._stop.asked
                )
        except BaseException:
            with suppress(StorageError):  # keep the job's own exception
                channel.ended(job)
            raise
        channel.ended(job)
        return result


def _require_one_worker(jobs: Sequence[Job]) -> None:
    most = max((job.workers for job in jobs), default=1)
    if most > 1:
        raise UserError(
            f"engine.workers_per_trial is {most}, and the inline executor has one process: "
            "use --executor ray, or set engine.workers_per_trial=1"
        )


class _Listener:
    """Forwards a job's progress, and keeps the exception that `on_event` raised."""

    def __init__(self, job: Job, on_event: Callable[[Event], None]) -> None:
        self.error: Exception | None = None
        self._job, self._on_event = job, on_event

    def __call__(self, progress: Progress) -> None:
        try:
            self._on_event(Progressed(job=self._job, progress=progress))
        except Exception as error:
            self.error = error
            raise
