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
from orchestrator.executors.base import Event, ExecutorSettings, Job, More, Retry
from orchestrator.executors.ray.job_process import JobPayload
from orchestrator.executors.ray.monitor import DIED, NO_MEMORY, JobMonitor
from orchestrator.executors.ray.scoring import ScoringPool
from orchestrator.executors.ray.session import (
    HEAD_NODE,
    at_once,
    held_gpus,
    living_nodes,
    place_wanted,
    request_of,
    session,
)
from orchestrator.executors.ray.slot import OUTCOME, PAYLOAD, PERCENT, PLACE, PROGRESS, run_slot
from orchestrator.jobs.placement import DRIVER, placement_of
from orchestrator.jobs.stopping import Stop
from orchestrator.storage.channel import JobChannel, RemoteJobChannel
from orchestrator.storage.remote import Remote
from orchestrator.study.early_stopping import EarlyStopping

#: Seconds that a trial waits for resources until a notice; then twice as long, and so on.
TOLD_AFTER = 60.0
#: Maximum number of attempts in a run. Tune requires a number; this one is never reached.
_ATTEMPTS = 2**31


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
        early_stopping: rule that cuts trainings whose job `may_be_cut`.
        remote: storage for the workers' files, if not the work directory, which then no node needs
            to see.
    """

    workdir: Path
    address: str | None = None
    max_concurrent: int | None = None
    begin_within: float = 600.0
    entry: str = "orchestrator.jobs.attempt:execute"
    stop: Stop = field(default_factory=Stop)
    early_stopping: EarlyStopping | None = None
    remote: Remote | None = None
    _folder: str | None = field(default=None, init=False)  # Tune's and Train's
    _largest: Sequence[Job] = field(default=(), init=False)  # jobs that it was opened for
    _held: int = field(default=0, init=False)  # number of reserved GPUs

    @contextlib.contextmanager
    def opened(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Stay connected over several runs of jobs no larger than these.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
        """
        largest = [job for job in jobs if not job.scores]
        with session(self.address, largest), self._files() as folder:
            self._folder, self._largest = folder, largest
            try:
                yield
            finally:
                self._folder, self._largest = None, ()

    def slots(self, job: Job) -> int:
        """Return how many jobs of this size run at once. Call it within `opened`."""
        return at_once(self.address, [job], self.max_concurrent, self._held)

    @contextlib.contextmanager
    def reserved(self, gpus: int) -> Iterator[Sequence[str]]:
        """Reserve GPUs of the cluster's only node.

        Raises:
            UserError: it has other nodes, or not enough GPUs for the largest job as well.
        """
        if not any(job.gpus for job in self._largest):
            gpus = 0
        with held_gpus(gpus, self._largest) as devices:
            self._held = gpus
            try:
                yield devices
            finally:
                self._held = 0

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        retry: Retry | None = None,
        more: More | None = None,
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
            with self.opened(jobs):
                self.run(jobs, on_event, retry, more)
            return
        assert len({job.id for job in jobs}) == len(jobs), "two jobs have one id"
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
            with ScoringPool(monitor, self._payload) as scoring:
                following = more or (lambda: ())
                while jobs:
                    training = scoring.sorted_out(jobs)
                    if training:
                        go_on = following if self._same_slots(training) else None
                        self._train(training, monitor, scoring, go_on)
                    jobs = () if self.stop.no_more else following() or ()
                scoring.finish()
        finally:
            channel.close()
        if self.stop.asked:
            raise KeyboardInterrupt

    def _same_slots(self, jobs: Sequence[Job]) -> bool:
        """Return whether slots of these jobs can run all others that this was opened for."""
        every = [*jobs, *self._largest]
        first = request_of(every[0])
        return _reusable(every) and all(request_of(job) == first for job in every)

    def _train(
        self, jobs: Sequence[Job], monitor: JobMonitor, scoring: ScoringPool, more: More | None
    ) -> None:
        """Run the jobs that need a model, by Tune."""

        def added() -> Sequence[Job] | None:
            found = () if more is None else monitor.asked(more)
            return None if found is None else scoring.sorted_out(found)

        searcher = JobSearcher(jobs, payload=self._payload, stop=self.stop, more=added)
        callback = TuneJobCallback(searcher=searcher, monitor=monitor, scoring=scoring)
        rule = self.early_stopping
        tune_config = tune.TuneConfig(
            search_alg=searcher,
            scheduler=FIFOScheduler() if rule is None else scheduler_of(rule),
            num_samples=_ATTEMPTS,
            max_concurrent_trials=at_once(self.address, jobs, self.max_concurrent, self._held),
            reuse_actors=_reusable(jobs),
            trial_name_creator=lambda trial: trial.config[PAYLOAD].job.id,
            trial_dirname_creator=lambda trial: trial.config[PAYLOAD].job.id,
        )
        while True:
            tuner = tune.Tuner(
                tune.with_resources(run_slot, slot_resources),
                tune_config=tune_config,
                run_config=tune.RunConfig(
                    name="tune",
                    # A new folder each time: Tune takes a second run in one as part of the first.
                    storage_path=tempfile.mkdtemp(prefix="tune-", dir=self._folder),
                    verbose=0,
                    callbacks=[callback, NoticeOfWaiting(monitor)],
                    stop=StopWaiting(monitor),
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            )
            try:
                tuner.fit()
                monitor.check()
                return
            except Exception as error:
                monitor.check()  # Tune wraps what its callbacks raise
                # If Ray kills a slot for memory, Tune ends all trials (Ray 2.60).
                cause = error.__cause__
                if not isinstance(cause, OutOfMemoryError) or not callback.end_all(cause):
                    raise

    @contextlib.contextmanager
    def _files(self) -> Iterator[str]:
        """Create a folder for Tune's and Train's files, removed at the end."""
        above = self.workdir.absolute() / "ray"
        above.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(
                prefix="run-", dir=above, ignore_cleanup_errors=True
            ) as folder:
                yield folder
        finally:
            with contextlib.suppress(OSError):  # another run's files may be there
                above.rmdir()

    def _payload(self, job: Job) -> JobPayload:
        staging = None
        if self.remote is not None:
            # Imported here, since it imports what otherwise only a worker needs.
            from orchestrator.storage.staging import StagingSpec

            staging = StagingSpec.for_attempt(job, self.remote, self.workdir.absolute())
        return JobPayload(
            job=job,
            entry=self.entry,
            resources=dict(request_of(job).each),
            placement=placement_of(request_of(job), living_nodes()),
            begin_within=self.begin_within,
            storage=tempfile.mkdtemp(prefix="train-", dir=self._folder),
            staging=staging,
        )


def _reusable(jobs: Sequence[Job]) -> bool:
    """Return whether a slot can run these jobs one after another.

    A slot of several workers only waits for them: it has nothing to reuse, and if early stopping
    cuts their training, they end with the slot.
    """
    return not any(job.config.engine.fresh_process or job.workers > 1 for job in jobs)


def slot_resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources that a job's slot requests from Tune.

    For a job of one worker, these are the worker's. For one of several, next to nothing, since
    Train requests the workers' resources itself and the slot must not take what they wait for.
    """
    payload: JobPayload = config[PAYLOAD]
    if payload.job.workers == 1:
        return tune.PlacementGroupFactory([payload.resources])
    there = DRIVER in ray.cluster_resources()
    return tune.PlacementGroupFactory([{DRIVER: 1} if there else {HEAD_NODE: 0.001}])


def scheduler_of(rule: EarlyStopping) -> TrialScheduler:
    """Return Tune's scheduler of an early-stopping rule."""
    settings = {
        "time_attr": PERCENT,
        "metric": rule.metric,
        "mode": "min" if rule.goal == "minimize" else "max",
        "grace_period": 100 * rule.grace,
    }
    if rule.method == "asha":
        return SparingAsha(
            **settings, max_t=100, reduction_factor=rule.factor, stop_last_trials=False
        )
    return SparingMedian(
        **settings,
        min_samples_required=rule.others,
        min_time_slice=math.inf,  # no trial is paused for others
    )


def is_spared(trial: Any, result: dict[str, Any]) -> bool:
    """Return whether a training is never cut: the arms are compared with it, or it has ended."""
    return result.get(PERCENT, 0) >= 100 or not trial.config[PAYLOAD].job.may_be_cut


class SparingAsha(ASHAScheduler):  # type: ignore[misc]
    """Tune's ASHA, without cuts of spared trainings."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether a training goes on."""
        decision: str = super().on_trial_result(controller, trial, result)
        if is_spared(trial, result):
            decision = TrialScheduler.CONTINUE
        return decision


class SparingMedian(MedianStoppingRule):  # type: ignore[misc]
    """Tune's median stopping rule, without cuts of spared trainings."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether a training goes on."""
        if PERCENT in result and self.metric in result and is_spared(trial, result):
            # Once the rule has stopped a trial, it takes no more reports of it.
            super().on_trial_complete(controller, trial, result)  # recorded, but not judged
            decision: str = TrialScheduler.CONTINUE
        else:
            decision = super().on_trial_result(controller, trial, result)
        return decision

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: the rule would record the last report, which is not of the training."""


class NotRestored:
    """Has no state in the file that Tune writes for a restore: the ledger restores runs."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}


class JobSearcher(NotRestored, Searcher):  # type: ignore[misc]
    """Gives Tune one job after another, and tracks those that have not ended."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        payload: Callable[[Job], JobPayload],
        stop: Stop,
        more: More = lambda: (),
    ) -> None:
        """Create a searcher.

        Args:
            jobs: the jobs, in order.
            payload: creates the payload of a job when it is started.
            stop: stop request, checked before each job.
            more: returns further jobs.
        """
        super().__init__()
        self._left = deque(jobs)
        self._more = more
        self._payload = payload
        self._stop = stop
        self._given: dict[str, Job] = {}  # jobs that have not ended, by id

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job's configuration; None: not now; FINISHED: no more."""
        if self._stop.no_more:
            self._left.clear()
        if not self._left and not self._stop.no_more:
            self._left.extend(self._more() or ())
        if not self._left:
            return None if self._given else Searcher.FINISHED
        job = self._left.popleft()
        self._given[job.id] = job
        return {PAYLOAD: self._payload(job)}

    def job(self, trial: Any) -> Job:
        """Return the job of a Tune trial that has not ended."""
        return self._given[trial.config[PAYLOAD].job.id]

    def take_back(self) -> None:
        """Put jobs that have not ended back into the queue, after Tune's run has ended."""
        self._left.extendleft(reversed(self._given.values()))
        self._given.clear()

    def ended(self, job: Job, retry_job: Job | None) -> None:
        """Record that a job has ended. Its trial's next attempt is the next to start."""
        if retry_job is not None:
            self._left.appendleft(retry_job)
        del self._given[job.id]

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: `ended` is called with the next attempt, if there is one."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger has the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing (see `save`)."""


@dataclass(kw_only=True, eq=False)
class TuneJobCallback(NotRestored, tune.Callback):  # type: ignore[misc]
    """Passes Tune's events to a monitor of jobs, and polls the scoring jobs."""

    searcher: JobSearcher
    monitor: JobMonitor
    scoring: ScoringPool

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check all jobs, and poll those that score."""
        # Tune treats an exception of `on_trial_complete` as the trial's failure (Ray 2.60).
        self.monitor.check()
        self.monitor.look()
        self.scoring.poll()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle the start of a job in its slot."""
        self.monitor.begin(self.searcher.job(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Handle a job's report of its progress or outcome."""
        job = trial.config[PAYLOAD].job
        running = self.monitor.running[job.id]
        running.process = (result[NODE_IP], result[PID])
        running.place = result.get(PLACE, running.place)
        running.outcome = result.get(OUTCOME)
        if PROGRESS in result:
            self.monitor.progress(job, result[PROGRESS])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle a trial's end: its job reported the outcome, or Tune ended it."""
        self._end(self.searcher.job(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle a slot's end: its job reported the outcome, or its process died."""
        self._end(self.searcher.job(trial), died=DIED)

    def end_all(self, error: OutOfMemoryError) -> bool:
        """End all running jobs after Ray killed a slot for memory and Tune ended all others.

        Args:
            error: error whose text names the processes that Ray killed.

        Returns:
            whether there were any.
        """
        running = [each for each in self.monitor.running.values() if not each.job.scores]
        killed = [
            each
            for each in running
            if each.process and re.search(rf"\bpid={each.process[1]}\b", str(error))
        ]
        for each in running:
            if each in (killed or running):
                self._end(each.job, died=NO_MEMORY)
            else:
                self._end(each.job, died="Ray killed another trial for memory, and Tune ended all")
        self.searcher.take_back()
        return bool(running)

    def _end(self, job: Job, died: str | None = None) -> None:
        retry_job = self.monitor.end(job, died)
        if retry_job is not None and retry_job.scores:
            self.scoring.submit(retry_job)
            retry_job = None
        self.searcher.ended(job, retry_job)


class StopWaiting(NotRestored, tune.Stopper):  # type: ignore[misc]
    """Ends Tune's run once the run should stop and only unstarted jobs are left."""

    def __init__(self, monitor: JobMonitor) -> None:
        """Store the monitor."""
        self._monitor = monitor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: each job ends itself, after it has written a checkpoint."""
        return False

    def stop_all(self) -> bool:
        """Return whether no started job is left."""
        return self._monitor.only_waiting


class NoticeOfWaiting(NotRestored, tune.Callback):  # type: ignore[misc]
    """Reports what trials without a place wait for. They keep waiting, as a cluster may grow.

    A trial of several workers has a slot at once, in which it waits until Train has placed them.
    """

    def __init__(self, monitor: JobMonitor, clock: Callable[[], float] = time.monotonic) -> None:
        """Store the monitor and the clock."""
        self._monitor = monitor
        self._clock = clock
        self._since: dict[str, float] = {}
        self._due = TOLD_AFTER

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Report waiting trials after a minute, and again each time that has doubled."""
        now = self._clock()
        waiting = [trial for trial in trials if self._is_waiting(trial)]
        self._since = {each.trial_id: self._since.get(each.trial_id, now) for each in waiting}
        seconds = now - min(self._since.values(), default=now)
        if seconds < TOLD_AFTER:
            self._due = TOLD_AFTER
        if seconds < self._due:
            return
        self._due = 2 * seconds
        first = waiting[0]
        payload: JobPayload = first.config[PAYLOAD]
        if first.status == Trial.PENDING:
            wanted = place_wanted(slot_resources(first.config).required_resources)
        else:
            wanted = place_wanted(payload.resources, payload.job.workers)
        if wanted is None:
            return
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        warn_once(
            f"{payload.job.name}{more}: no place yet after {seconds:.0f} s: {wanted}: "
            "wait until there is, or stop by Ctrl-C"
        )

    def _is_waiting(self, trial: Any) -> bool:
        """Return whether a trial, or its workers, have no place."""
        if trial.status != Trial.RUNNING:
            return bool(trial.status == Trial.PENDING)
        job: Job = trial.config[PAYLOAD].job
        running = self._monitor.running.get(job.id)
        return job.workers > 1 and running is not None and running.place is None
