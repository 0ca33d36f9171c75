"""The executor on Ray: a Tuner takes jobs from the run's queue and runs each in a slot."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.experiment import Trial
from ray.tune.result import NODE_IP, PID
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from chip_core.utils.errors import warn_once
from orchestrator.executors.base import ExecutorSettings, Job, JobEvent, JobSource, RetryPolicy
from orchestrator.executors.ray.job_process import JobPayload
from orchestrator.executors.ray.monitor import DIED_REASON, OUT_OF_MEMORY_REASON, JobMonitor
from orchestrator.executors.ray.scoring import ScoringPool
from orchestrator.executors.ray.session import (
    HEAD_NODE_RESOURCE,
    alive_node_resources,
    connect_ray,
    count_concurrent_jobs,
    describe_pending_request,
    job_request,
    reserve_node_gpus,
)
from orchestrator.executors.ray.slot import (
    OUTCOME_KEY,
    PAYLOAD_KEY,
    PERCENT_KEY,
    PLACEMENT_GROUP_KEY,
    PROGRESS_KEY,
    run_slot,
)
from orchestrator.jobs.job import StopRequest
from orchestrator.jobs.placement import DRIVER_RESOURCE, placement_strategy
from orchestrator.storage.channel import JobChannel, RemoteJobChannel
from orchestrator.storage.remote import RemoteStorage
from orchestrator.study.early_stopping import EarlyStopping

#: Seconds that a trial waits for resources until a notice; then twice as long, and so on.
NOTICE_AFTER = 60.0
#: Maximum number of attempts in a run. Tune requires a number; this one is never reached.
_MAX_ATTEMPTS = 2**31


def make_executor(settings: ExecutorSettings) -> RayTuneExecutor:
    """Create the executor of a study."""
    return RayTuneExecutor(**vars(settings))


@dataclass(kw_only=True)
class RayTuneExecutor:
    """Runs jobs on Ray, as many at once as fit.

    Attributes:
        workdir: the work directory, whose `ray/` has Ray's files while jobs run; with `address` and
            without `remote`, all nodes must see it.
        address: "auto" or "host:port" of a running cluster, which is left running; None: Ray
            is started on this machine and stopped at the end.
        max_concurrent: jobs at once, by default as many as fit. On this machine never more than
            fit; on a cluster, jobs that do not fit wait for it to grow.
        begin_within: seconds from a job's start to its first progress, after which it has failed.
        entry: function that a worker calls with the job, a report function, and one that returns
            whether it should stop.
        stop: stop request, checked while jobs run.
        early_stopping: rule that cuts trainings whose job `can_stop_early`.
        remote: storage for the workers' files, if not the work directory, which then no node needs
            to see.
    """

    workdir: Path
    address: str | None = None
    max_concurrent: int | None = None
    begin_within: float = 600.0
    entry: str = "orchestrator.jobs.attempt:execute_job"
    stop: StopRequest = field(default_factory=StopRequest)
    early_stopping: EarlyStopping | None = None
    remote: RemoteStorage | None = None
    _folder: str | None = field(default=None, init=False)  # Tune's and Train's
    _largest_jobs: Sequence[Job] = field(default=(), init=False)  # jobs that it was opened for
    _reserved_gpus: int = field(default=0, init=False)  # number of reserved GPUs

    @contextlib.contextmanager
    def open(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Stay connected over several runs of jobs no larger than these.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
        """
        largest_jobs = [job for job in jobs if not job.is_scoring]
        with connect_ray(self.address, largest_jobs), self._create_folder() as folder:
            self._folder, self._largest_jobs = folder, largest_jobs
            try:
                yield
            finally:
                self._folder, self._largest_jobs = None, ()

    def count_slots(self, job: Job) -> int:
        """Return how many jobs of this size run at once. Call it within `open`."""
        return count_concurrent_jobs(self.address, [job], self.max_concurrent, self._reserved_gpus)

    @contextlib.contextmanager
    def reserve_gpus(self, gpus: int) -> Iterator[Sequence[str]]:
        """Reserve GPUs of the cluster's only node.

        Raises:
            UserError: it has other nodes, or not enough GPUs for the largest job as well.
        """
        if not any(job.num_gpus for job in self._largest_jobs):
            gpus = 0
        with reserve_node_gpus(gpus, self._largest_jobs) as devices:
            self._reserved_gpus = gpus
            try:
                yield devices
            finally:
                self._reserved_gpus = 0

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        fetch_jobs: JobSource | None = None,
    ) -> None:
        """Run all jobs in order, and those that are added, and return when all have ended.

        Added jobs run in the same slots, if they request the same resources.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
            KeyboardInterrupt: the user stopped the run; no process of the jobs is left.
        """
        if not jobs:
            return
        if self._folder is None:
            with self.open(jobs):
                self.run(jobs, on_event, retry, fetch_jobs)
            return
        assert len({job.id for job in jobs}) == len(jobs), "two jobs have the same id"
        channel = JobChannel()
        if self.remote is not None:
            channel = RemoteJobChannel(self.remote, self.workdir)
        monitor = JobMonitor(
            on_event=on_event,
            retry=retry,
            begin_within=self.begin_within,
            stop=self.stop,
            channel=channel,
            rule=self.early_stopping,
        )
        try:
            with ScoringPool(monitor, self._make_payload) as scoring:
                fetch_next = fetch_jobs or (lambda: ())
                while jobs:
                    training_jobs = scoring.take_scoring_jobs(jobs)
                    if training_jobs:
                        job_source = fetch_next if self._can_share_slots(training_jobs) else None
                        self._train(training_jobs, monitor, scoring, job_source)
                    jobs = () if self.stop.is_draining else fetch_next() or ()
                scoring.finish()
        finally:
            channel.close()
        if self.stop.is_requested:
            raise KeyboardInterrupt

    def _can_share_slots(self, jobs: Sequence[Job]) -> bool:
        """Return whether slots of these jobs can run all others that this was opened for."""
        all_jobs = [*jobs, *self._largest_jobs]
        request = job_request(all_jobs[0])
        return _can_reuse_slot(all_jobs) and all(job_request(job) == request for job in all_jobs)

    def _train(
        self,
        jobs: Sequence[Job],
        monitor: JobMonitor,
        scoring: ScoringPool,
        job_source: JobSource | None,
    ) -> None:
        """Run the jobs that need a model, by Tune."""

        def fetch_training_jobs() -> Sequence[Job] | None:
            new_jobs = () if job_source is None else monitor.fetch_jobs(job_source)
            return None if new_jobs is None else scoring.take_scoring_jobs(new_jobs)

        searcher = JobSearcher(
            jobs, make_payload=self._make_payload, stop=self.stop, fetch_jobs=fetch_training_jobs
        )
        callback = TuneJobCallback(searcher=searcher, monitor=monitor, scoring=scoring)
        rule = self.early_stopping
        tune_config = tune.TuneConfig(
            search_alg=searcher,
            scheduler=FIFOScheduler() if rule is None else make_scheduler(rule),
            num_samples=_MAX_ATTEMPTS,
            max_concurrent_trials=count_concurrent_jobs(
                self.address, jobs, self.max_concurrent, self._reserved_gpus
            ),
            reuse_actors=_can_reuse_slot(jobs),
            trial_name_creator=lambda trial: trial.config[PAYLOAD_KEY].job.id,
            trial_dirname_creator=lambda trial: trial.config[PAYLOAD_KEY].job.id,
        )
        while True:
            tuner = tune.Tuner(
                tune.with_resources(run_slot, slot_resources),
                tune_config=tune_config,
                run_config=tune.RunConfig(
                    name="tune",
                    # A new folder each time: Tune treats a second run in the same folder as part of
                    # the first.
                    storage_path=tempfile.mkdtemp(prefix="tune-", dir=self._folder),
                    verbose=0,
                    callbacks=[callback, WaitingNotice(monitor)],
                    stop=WaitingTrialsStopper(monitor),
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            )
            try:
                tuner.fit()
                monitor.raise_error()
                return
            except Exception as error:
                monitor.raise_error()  # Tune wraps what its callbacks raise
                # If Ray kills a slot for memory, Tune ends all trials (Ray 2.60).
                cause = error.__cause__
                if not isinstance(cause, OutOfMemoryError) or not callback.end_all(cause):
                    raise

    @contextlib.contextmanager
    def _create_folder(self) -> Iterator[str]:
        """Create a folder for Tune's and Train's files, removed at the end."""
        parent = self.workdir.absolute() / "ray"
        parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(
                prefix="run-", dir=parent, ignore_cleanup_errors=True
            ) as folder:
                yield folder
        finally:
            with contextlib.suppress(OSError):  # another run's files may be there
                parent.rmdir()

    def _make_payload(self, job: Job) -> JobPayload:
        staging = None
        if self.remote is not None:
            # Imported here, since it imports what otherwise only a worker needs.
            from orchestrator.storage.staging import StagingSpec

            staging = StagingSpec.for_attempt(job, self.remote, self.workdir.absolute())
        return JobPayload(
            job=job,
            entry=self.entry,
            resources=dict(job_request(job).per_worker),
            placement=placement_strategy(job_request(job), alive_node_resources()),
            begin_within=self.begin_within,
            storage=tempfile.mkdtemp(prefix="train-", dir=self._folder),
            staging=staging,
        )


def _can_reuse_slot(jobs: Sequence[Job]) -> bool:
    """Return whether a slot can run these jobs one after another.

    A slot of several workers only waits for them: it has nothing to reuse, and if early stopping
    cuts their training, they end with the slot.
    """
    return not any(job.config.engine.fresh_process or job.num_workers > 1 for job in jobs)


def slot_resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources that a job's slot requests from Tune.

    For a job of one worker, these are the worker's. For one of several, next to nothing, since
    Train requests the workers' resources itself and the slot must not take what they wait for.
    """
    payload: JobPayload = config[PAYLOAD_KEY]
    if payload.job.num_workers == 1:
        return tune.PlacementGroupFactory([payload.resources])
    has_driver_resource = DRIVER_RESOURCE in ray.cluster_resources()
    return tune.PlacementGroupFactory(
        [{DRIVER_RESOURCE: 1} if has_driver_resource else {HEAD_NODE_RESOURCE: 0.001}]
    )


def make_scheduler(rule: EarlyStopping) -> TrialScheduler:
    """Return Tune's scheduler of an early-stopping rule."""
    settings = {
        "time_attr": PERCENT_KEY,
        "metric": rule.metric,
        "mode": "min" if rule.goal == "minimize" else "max",
        "grace_period": 100 * rule.grace,
    }
    if rule.method == "asha":
        return SparingASHAScheduler(
            **settings,
            max_t=100,
            reduction_factor=rule.effective_reduction_factor,
            stop_last_trials=False,
        )
    return SparingMedianStoppingRule(
        **settings,
        min_samples_required=rule.effective_min_trials,
        min_time_slice=math.inf,  # no trial is paused for others
    )


def is_spared(trial: Any, result: dict[str, Any]) -> bool:
    """Return whether a training is never cut: the arms are compared with it, or it has ended."""
    return result.get(PERCENT_KEY, 0) >= 100 or not trial.config[PAYLOAD_KEY].job.can_stop_early


class SparingASHAScheduler(ASHAScheduler):  # type: ignore[misc]
    """Tune's ASHA, without cuts of spared trainings."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a training continues."""
        decision: str = super().on_trial_result(controller, trial, result)
        if is_spared(trial, result):
            decision = TrialScheduler.CONTINUE
        return decision


class SparingMedianStoppingRule(MedianStoppingRule):  # type: ignore[misc]
    """Tune's median stopping rule, without cuts of spared trainings."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a training continues."""
        if PERCENT_KEY in result and self.metric in result and is_spared(trial, result):
            # Once the rule has stopped a trial, it takes no more reports of it.
            super().on_trial_complete(controller, trial, result)  # recorded, but not judged
            decision: str = TrialScheduler.CONTINUE
        else:
            decision = super().on_trial_result(controller, trial, result)
        return decision

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: the rule would record the last report, which is not of the training."""


class NoStateMixin:
    """Saves no state in Tune's checkpoint: runs are restored from the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}


class JobSearcher(NoStateMixin, Searcher):  # type: ignore[misc]
    """Gives Tune one job after another, and tracks those that have not ended."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        make_payload: Callable[[Job], JobPayload],
        stop: StopRequest,
        fetch_jobs: JobSource = lambda: (),
    ) -> None:
        """Create a searcher.

        Args:
            jobs: the jobs, in order.
            make_payload: creates the payload of a job when it is started.
            stop: stop request, checked before each job.
            fetch_jobs: returns further jobs.
        """
        super().__init__()
        self._queue = deque(jobs)
        self._fetch_jobs = fetch_jobs
        self._make_payload = make_payload
        self._stop = stop
        self._active_jobs: dict[str, Job] = {}  # jobs that have not ended, by id

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job's configuration; None: not now; FINISHED: no more."""
        if self._stop.is_draining:
            self._queue.clear()
        if not self._queue and not self._stop.is_draining:
            self._queue.extend(self._fetch_jobs() or ())
        if not self._queue:
            return None if self._active_jobs else Searcher.FINISHED
        job = self._queue.popleft()
        self._active_jobs[job.id] = job
        return {PAYLOAD_KEY: self._make_payload(job)}

    def find_job(self, trial: Any) -> Job:
        """Return the job of a Tune trial that has not ended."""
        return self._active_jobs[trial.config[PAYLOAD_KEY].job.id]

    def requeue_active(self) -> None:
        """Put jobs that have not ended back into the queue, after Tune's run has ended."""
        self._queue.extendleft(reversed(self._active_jobs.values()))
        self._active_jobs.clear()

    def on_job_end(self, job: Job, retry_job: Job | None) -> None:
        """Record that a job has ended. Its trial's next attempt is the next to start."""
        if retry_job is not None:
            self._queue.appendleft(retry_job)
        del self._active_jobs[job.id]

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: `on_job_end` is called with the next attempt, if there is one."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger has the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing (see `save`)."""


@dataclass(kw_only=True, eq=False)
class TuneJobCallback(NoStateMixin, tune.Callback):  # type: ignore[misc]
    """Passes Tune's events to a monitor of jobs, and polls the scoring jobs."""

    searcher: JobSearcher
    monitor: JobMonitor
    scoring: ScoringPool

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check all jobs, and poll those that score."""
        # Tune treats an exception of `on_trial_complete` as the trial's failure (Ray 2.60).
        self.monitor.raise_error()
        self.monitor.check_jobs()
        self.scoring.poll()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle the start of a job in its slot."""
        self.monitor.on_start(self.searcher.find_job(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Handle a job's report of its progress or outcome."""
        job = trial.config[PAYLOAD_KEY].job
        running_job = self.monitor.running[job.id]
        running_job.process = (result[NODE_IP], result[PID])
        running_job.placement_group = result.get(PLACEMENT_GROUP_KEY, running_job.placement_group)
        running_job.outcome = result.get(OUTCOME_KEY)
        if PROGRESS_KEY in result:
            self.monitor.on_progress(job, result[PROGRESS_KEY])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle a trial's end: its job reported the outcome, or Tune ended it."""
        self._end_job(self.searcher.find_job(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle a slot's end: its job reported the outcome, or its process died."""
        self._end_job(self.searcher.find_job(trial), death_reason=DIED_REASON)

    def end_all(self, error: OutOfMemoryError) -> bool:
        """End all running jobs after Ray killed a slot for memory and Tune ended all others.

        Args:
            error: error whose text names the processes that Ray killed.

        Returns:
            whether there were any.
        """
        running = [
            running_job
            for running_job in self.monitor.running.values()
            if not running_job.job.is_scoring
        ]
        killed = [
            running_job
            for running_job in running
            if running_job.process and re.search(rf"\bpid={running_job.process[1]}\b", str(error))
        ]
        for running_job in running:
            if running_job in (killed or running):
                self._end_job(running_job.job, death_reason=OUT_OF_MEMORY_REASON)
            else:
                self._end_job(
                    running_job.job,
                    death_reason="Ray killed another trial for memory, and Tune ended all",
                )
        self.searcher.requeue_active()
        return bool(running)

    def _end_job(self, job: Job, death_reason: str | None = None) -> None:
        retry_job = self.monitor.on_end(job, death_reason)
        if retry_job is not None and retry_job.is_scoring:
            self.scoring.submit(retry_job)
            retry_job = None
        self.searcher.on_job_end(job, retry_job)


class WaitingTrialsStopper(NoStateMixin, tune.Stopper):  # type: ignore[misc]
    """Ends Tune's run once the run should stop and only unstarted jobs are left."""

    def __init__(self, monitor: JobMonitor) -> None:
        """Store the monitor."""
        self._monitor = monitor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: each job ends itself, after it has written a checkpoint."""
        return False

    def stop_all(self) -> bool:
        """Return whether no started job is left."""
        return self._monitor.has_only_waiting


class WaitingNotice(NoStateMixin, tune.Callback):  # type: ignore[misc]
    """Reports what trials without resources wait for; they keep waiting for a cluster to grow.

    A trial of several workers has a slot at once, in which it waits until Train has placed them.
    """

    def __init__(self, monitor: JobMonitor, clock: Callable[[], float] = time.monotonic) -> None:
        """Store the monitor and the clock."""
        self._monitor = monitor
        self._clock = clock
        self._waiting_since: dict[str, float] = {}
        self._next_notice = NOTICE_AFTER

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Report waiting trials after a minute, and again each time that has doubled."""
        now = self._clock()
        waiting = [trial for trial in trials if self._is_waiting(trial)]
        self._waiting_since = {
            trial.trial_id: self._waiting_since.get(trial.trial_id, now) for trial in waiting
        }
        seconds = now - min(self._waiting_since.values(), default=now)
        if seconds < NOTICE_AFTER:
            self._next_notice = NOTICE_AFTER
        if seconds < self._next_notice:
            return
        self._next_notice = 2 * seconds
        first = waiting[0]
        payload: JobPayload = first.config[PAYLOAD_KEY]
        if first.status == Trial.PENDING:
            request_text = describe_pending_request(slot_resources(first.config).required_resources)
        else:
            request_text = describe_pending_request(payload.resources, payload.job.num_workers)
        if request_text is None:
            return
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        warn_once(
            f"{payload.job.name}{more}: no resources yet after {seconds:.0f} s: {request_text}: "
            "wait until there are, or stop with Ctrl-C"
        )

    def _is_waiting(self, trial: Any) -> bool:
        """Return whether a trial, or its workers, have no resources yet."""
        if trial.status != Trial.RUNNING:
            return bool(trial.status == Trial.PENDING)
        job: Job = trial.config[PAYLOAD_KEY].job
        running_job = self._monitor.running.get(job.id)
        return (
            job.num_workers > 1 and running_job is not None and running_job.placement_group is None
        )
