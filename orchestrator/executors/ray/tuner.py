"""The executor on Ray: a Tuner takes jobs from the run's queue and gives each a slot."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import shutil
import signal
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.result import NODE_IP, PID
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from chip_core.errors import StorageError
from chip_core.results import Progress, read_result
from orchestrator.executors.base import (
    STOP,
    Again,
    Cause,
    Cut,
    Event,
    Failed,
    Finished,
    Job,
    Progressed,
    Started,
    reason_of,
)
from orchestrator.executors.desk import Desk, FarDesk
from orchestrator.executors.ray.session import (
    DRIVER,
    HEAD_NODE,
    at_once,
    living_nodes,
    placement_of,
    resources_of,
    session,
)
from orchestrator.executors.ray.slot import (
    CAUSE,
    FROM_OUTSIDE,
    HANG,
    OUTCOME,
    PAYLOAD,
    PERCENT,
    REASON,
    JobPayload,
    run_slot,
)
from orchestrator.stopping import Stop
from orchestrator.storage.remote import Remote
from orchestrator.study_early import EarlyStopping

#: More jobs than any cluster runs at once.
_MANY = 4096
#: Seconds that a slot has past `engine.stall_after` to end itself and leave where it hung.
_GRACE = 15.0
#: The longest time between two looks, in seconds, that counts as a slot's silence.
_LOOK = 5.0
#: Attempts in all of a run: as many as there ever are, and Tune wants a number.
_ATTEMPTS = 2**31


class RayTuneExecutor:
    """Runs jobs on Ray, as many at once as there is room for."""

    def __init__(
        self,
        *,
        workdir: Path,
        address: str | None = None,
        max_concurrent: int | None = None,
        begin_within: float = 600.0,
        entry: str = "orchestrator.executors.base:execute",
        stop: Stop | None = None,
        early_stopping: EarlyStopping | None = None,
        remote: Remote | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            workdir: Ray's files lie in `ray/` below it while jobs run; with `address` and without
                `remote`, all nodes must see it.
            address: "auto" or "host:port" of a running cluster, which is left running; None: Ray
                is started on this machine and stopped at the end.
            max_concurrent: jobs at once, by default as many as fit. On this machine it is at most
                that; on a cluster, jobs above it wait for the cluster to grow.
            begin_within: seconds from a job's start to its first progress; then it has failed.
            entry: what a worker calls with the job, a report function, and one that says whether it
                is to stop.
            stop: looked at while jobs run.
            early_stopping: by what trainings are cut that may be.
            remote: the storage by which workers have and leave files, where that is not the work
                directory; then no node need see it.
        """
        self._workdir = workdir
        self._address = address
        self._max_concurrent = max_concurrent
        self._begin_within = begin_within
        self._entry = entry
        self._stop = stop or Stop()
        self._early_stopping = early_stopping
        self._remote = remote
        self._folder: str | None = None  # for Tune's and Train's own files, while it is open

    @contextlib.contextmanager
    def opened(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Stay connected over several runs of jobs no larger than these.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
        """
        with session(self._address, jobs), self._files() as folder:
            self._folder = folder
            try:
                yield
            finally:
                self._folder = None

    def slots(self, job: Job) -> int:
        """Return how many jobs as large as this run at once; within `opened`."""
        return at_once(self._address, [job] * _MANY, self._max_concurrent)

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        again: Again | None = None,
    ) -> None:
        """Run all jobs, taken in their order, and return when they have ended.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
            KeyboardInterrupt: the user stopped it; no process of the jobs is left.
        """
        if not jobs:
            return
        if self._folder is None:
            with self.opened(jobs):
                self.run(jobs, on_event, again)
            return
        assert len({job.id for job in jobs}) == len(jobs), "two jobs have one id"
        # A folder for each run: Tune takes a second one in the same for a part of the first.
        storage = tempfile.mkdtemp(prefix="tune-", dir=self._folder)
        searcher = JobSearcher(
            jobs,
            at_once=at_once(self._address, jobs, self._max_concurrent),
            payload=lambda job: self._payload(job, storage),
            stop=self._stop,
        )
        desk = Desk()
        if self._remote is not None:
            desk = FarDesk(self._remote, self._workdir)
        rule = self._early_stopping
        callback = TuneJobCallback(
            searcher,
            on_event,
            again,
            begin_within=self._begin_within,
            stop=self._stop,
            desk=desk,
            rule=rule,
        )
        tuner = tune.Tuner(
            tune.with_resources(run_slot, slot_resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=FIFOScheduler() if rule is None else scheduler_of(rule),
                num_samples=_ATTEMPTS,
                # A slot that only waits for its workers has nothing to keep, and where early
                # stopping cuts their training, they end with it.
                reuse_actors=not any(
                    job.config.engine.fresh_process or job.workers > 1 for job in jobs
                ),
                trial_name_creator=lambda trial: trial.config[PAYLOAD].job.id,
                trial_dirname_creator=lambda trial: trial.config[PAYLOAD].job.id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=storage,
                verbose=0,
                callbacks=[callback],
                stop=StopWaiting(callback),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        try:
            tuner.fit()
        except Exception:
            if callback.error is not None:  # Tune wraps what its callbacks raise
                raise callback.error from None
            raise
        finally:
            desk.close()
        if self._stop.asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _files(self) -> Iterator[str]:
        """A folder for Tune's and Train's own files, removed at the end."""
        above = self._workdir.absolute() / "ray"
        above.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="run-", dir=above)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run's files may be there
                above.rmdir()

    def _payload(self, job: Job, storage: str) -> JobPayload:
        staging = None
        if self._remote is not None:
            # Imported here: it takes what only a worker needs otherwise.
            from orchestrator.executors.elsewhere import Elsewhere

            staging = Elsewhere(
                remote=self._remote,
                workdir=self._workdir.absolute(),
                token=f"{job.id}-{uuid.uuid4().hex[:12]}",
            )
        return JobPayload(
            job=job,
            entry=self._entry,
            resources=resources_of(job),
            placement=placement_of(job, living_nodes()),
            begin_within=self._begin_within,
            storage=storage,
            staging=staging,
        )


def slot_resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what a job's slot asks Tune for.

    A job of one worker: all that the worker has. One of several: next to nothing, since Train asks
    for its workers itself; the slot must not take a place that they wait for.
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
        min_time_slice=math.inf,  # nobody is paused for others
    )


def is_spared(trial: Any, result: dict[str, Any]) -> bool:
    """Return whether a training goes on whatever a rule says: others are compared with it."""
    return result.get(PERCENT, 0) >= 100 or not trial.config[PAYLOAD].job.may_be_cut


class SparingAsha(ASHAScheduler):  # type: ignore[misc]
    """Tune's ASHA."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether a training goes on."""
        decision: str = super().on_trial_result(controller, trial, result)
        if is_spared(trial, result):
            decision = TrialScheduler.CONTINUE
        return decision


class SparingMedian(MedianStoppingRule):  # type: ignore[misc]
    """Tune's median stopping rule."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Say whether a training goes on."""
        if PERCENT in result and self.metric in result and is_spared(trial, result):
            # Once it has found a trial to be behind, the rule takes no more reports of it.
            super().on_trial_complete(controller, trial, result)  # noted, and not judged
            decision: str = TrialScheduler.CONTINUE
        else:
            decision = super().on_trial_result(controller, trial, result)
        return decision

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing: the rule would note the last report as a training's, and it is of the end."""


class JobSearcher(Searcher):  # type: ignore[misc]
    """Gives Tune one job after another, and remembers which of them have not ended."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        at_once: int,
        payload: Callable[[Job], JobPayload],
        stop: Stop,
    ) -> None:
        """Nothing is given out yet.

        Args:
            jobs: in their order.
            at_once: how many run at the same time.
            payload: makes what travels of a job, when its turn has come.
            stop: looked at before each.
        """
        super().__init__()
        self._left = deque(jobs)
        self._at_once = at_once
        self._payload = payload
        self._stop = stop
        self._given: dict[str, Job] = {}  # by id, those that have not ended

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job's settings; None: not now; FINISHED: never."""
        if self._stop.no_more:
            self._left.clear()
        if not self._left:
            return None if self._given else Searcher.FINISHED
        if len(self._given) >= self._at_once:
            return None
        job = self._left.popleft()
        self._given[job.id] = job
        return {PAYLOAD: self._payload(job)}

    def job(self, trial: Any) -> Job:
        """Return the job of a Tune trial that has not ended."""
        return self._given[trial.config[PAYLOAD].job.id]

    def ended(self, job: Job, retry: Job | None) -> None:
        """Take note that a job has ended; its trial's next attempt is the next to begin."""
        if retry is not None:
            self._left.appendleft(retry)
        del self._given[job.id]

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: `ended` is told with the next attempt, if there is one."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is to run is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Be empty in the file that Tune writes for a restore."""
        return {}


@dataclass(kw_only=True)
class _Running:
    """A job that runs, and what its slot reported last."""

    job: Job
    reported_at: float = field(default_factory=time.monotonic)
    last: Progress | None = None
    outcome: dict[str, Any] | None = None
    told_to_stop: bool = False
    slot: tuple[str, int] | None = None  # its process: the node's address, and its id there
    waited: float = 0.0  # seconds without a report in which there was a look at it

    def silent_for(self) -> float:
        return time.monotonic() - self.reported_at

    def hanging_slot(self) -> tuple[str, int] | None:
        """Return its slot's process where that is past the time in which it ends itself.

        A process that is stopped does not. Several workers report no scoring: Train watches them.
        """
        stall_after = self.job.config.engine.stall_after
        if stall_after is None or self.job.workers > 1 or self.waited <= stall_after + _GRACE:
            return None
        return self.slot


class TuneJobCallback(tune.Callback):  # type: ignore[misc]
    """Turns what Tune says of trials into events of jobs."""

    def __init__(
        self,
        searcher: JobSearcher,
        on_event: Callable[[Event], None],
        again: Again | None,
        *,
        begin_within: float,
        stop: Stop,
        desk: Desk,
        rule: EarlyStopping | None,
    ) -> None:
        super().__init__()
        self.error: Exception | None = None  # what `on_event` or `again` raised
        self._searcher = searcher
        self._on_event = on_event
        self._again = again
        self._begin_within = begin_within
        self._stop = stop
        self._desk = desk
        self._rule = rule
        self._running: dict[str, _Running] = {}
        self._looked_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Be empty in the file that Tune writes for a restore: the ledger does that here."""
        return {}

    @property
    def only_waiting(self) -> bool:
        """Whether the run is to stop and no job is left that still has to end by itself."""
        return self._stop.asked and not any(each.last for each in self._running.values())

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tell jobs that the run is to stop: each leaves a checkpoint and ends.

        Slots that hang are ended.
        """
        now = time.monotonic()
        passed, self._looked_at = min(now - self._looked_at, _LOOK), now
        for running in self._running.values():
            running.waited += passed
            slot = running.hanging_slot()
            if slot is not None:
                end_process(*slot)
                running.waited = 0.0  # it is tried again where that did not help
        if not self._stop.asked:
            return
        for running in self._running.values():
            if running.last is not None and not running.told_to_stop:
                with contextlib.suppress(OSError, StorageError):  # a full disk: later, perhaps
                    self._desk.tell(running.job, STOP)
                    running.told_to_stop = True

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A job has its slot."""
        job = self._searcher.job(trial)
        self._running[job.id] = _Running(job=job)
        self._desk.begun(job)
        self._emit(Started(job=job))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A job reported where it is, or how it ended."""
        running = self._running[trial.config[PAYLOAD].job.id]
        if OUTCOME in result:
            running.outcome = result
            return
        running.reported_at, running.last = time.monotonic(), Progress(**result[PAYLOAD])
        running.waited, running.slot = 0.0, (result[NODE_IP], result[PID])
        self._emit(Progressed(job=running.job, progress=running.last))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended: its job reported how, or Tune ended it."""
        self._end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A slot ended: its job reported how, or its process died."""
        # Tune's own get_pickled_error looks where it copies this file to, later.
        file = trial.pickled_error_file
        died = Exception() if file is None else pickle.loads(Path(file).read_bytes())
        self._end(trial, died)

    def _end(self, trial: Any, died: Exception | None) -> None:
        job = self._searcher.job(trial)
        running = self._running.pop(job.id, None)
        if running is None:  # its slot never came
            running = _Running(job=job)
            self._emit(Started(job=job))
        away = self._away(job)
        result = read_result(job.folder)
        if result is not None:  # written last: whatever came after it took nothing away
            self._searcher.ended(job, None)
            self._emit(Finished(job=job, result=result))
            return
        outcome = running.outcome
        if outcome is None and died is None and not self._stop.asked and self._rule is not None:
            self._searcher.ended(job, None)
            self._emit(Cut(job=job, reason=self._cut(running)))
            return
        if outcome is not None and outcome[CAUSE] is not None:
            reason, cause, outside = outcome[REASON], outcome[CAUSE], outcome[FROM_OUTSIDE]
        else:
            reason, cause = self._unsaid(running, died)
            reason, outside = away or reason, True
        failed = Failed(job=job, reason=reason, cause=cause, from_outside=outside)
        # Where what it left cannot be read, another attempt would begin at nothing.
        may_retry = not self._stop.no_more and away is None
        retry = self._retry(failed) if may_retry else None
        self._searcher.ended(job, retry)
        self._emit(replace(failed, again=retry))

    def _unsaid(self, running: _Running, died: Exception | None) -> tuple[str, Cause]:
        """Return why a job ended that did not say so itself."""
        if died is None:
            if self._stop.asked:
                return "stopped before it began", "stopped"
            return f"its worker left no result in {running.job.folder}", "own"
        silent, stall_after = running.silent_for(), running.job.config.engine.stall_after
        if running.last is None and silent > 0.95 * self._begin_within:
            return f"its worker did not begin within {self._begin_within:.0f} s", "lost"
        if running.last is not None and stall_after is not None and silent > 0.95 * stall_after:
            where = f"{running.last.phase} {running.last.done}/{running.last.total}"
            reason = f"its worker hangs: no progress for {silent:.0f} s at {where}"
            left = running.job.folder / HANG
            known = left.exists() and left.stat().st_size > 0
            return (f"{reason} (where: {left})" if known else reason), "lost"
        if isinstance(died, OutOfMemoryError):
            return "the worker process died (its machine ran out of memory)", "memory"
        return "the worker process died (killed, out of memory, or crashed)", "lost"

    def _cut(self, running: _Running) -> str:
        assert self._rule is not None
        if running.last is None:
            return f"cut by early stopping ({self._rule.words})"
        value = running.last.figures.get(self._rule.metric, math.nan)
        return (
            f"cut by early stopping ({self._rule.words}) at step {running.last.done} of "
            f"{running.last.total}, {self._rule.metric} {value:.4g}"
        )

    def _away(self, job: Job) -> str | None:
        """Have here what a job left; return why that cannot be had."""
        try:
            self._desk.ended(job)
        except (StorageError, OSError) as error:
            return f"{reason_of(error)}: give the same command again when it is back"
        return None

    def _retry(self, failed: Failed) -> Job | None:
        if self._again is None or self.error is not None:
            return None
        try:
            return self._again(failed)
        except Exception as error:
            self.error = error
            raise

    def _emit(self, event: Event) -> None:
        if self.error is not None:
            return
        try:
            self._on_event(event)
        except Exception as error:
            self.error = error
            raise


def end_process(node: str, pid: int) -> None:
    """Kill a process on a node of the cluster, by a task that runs beside it."""

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    beside = {f"node:{node}": 0.001}
    ray.remote(kill).options(num_cpus=0, resources=beside, max_retries=0).remote()


class StopWaiting(tune.Stopper):  # type: ignore[misc]
    """End all once the run is to stop and only jobs are left that have not begun."""

    def __init__(self, callback: TuneJobCallback) -> None:
        """Nothing is to stop yet."""
        self._callback = callback

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Leave each trial to its job, which writes a checkpoint first."""
        return False

    def stop_all(self) -> bool:
        """Return whether nothing is left to wait for."""
        return self._callback.only_waiting
