"""Jobs on Ray: Tune schedules them, each is one run of Train with the job's workers.

What happens in a trial's own processes is in ray_worker.py.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from chip_core.files import write_atomically
from chip_core.results import Progress, read_result
from orchestrator.executors.base import CUT, Cut, Event, Failed, Finished, Job, Progressed, Started
from orchestrator.executors.ray_early import Referee
from orchestrator.executors.ray_session import (
    DRIVER,
    HEAD_NODE,
    at_once,
    living_nodes,
    placement_of,
    resources_of,
    session,
)
from orchestrator.executors.ray_worker import PLACE, PROGRESS, REASON, Parcel, drive
from orchestrator.study_early import EarlyStopping

#: More jobs than any cluster runs at once.
_MANY = 4096
#: Seconds between two looks at what running jobs tell.
FOLLOW_EVERY = 0.3


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
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        """Nothing is started yet.

        Args:
            workdir: Ray's files lie in `ray/` below it while jobs run; with `address`, all nodes
                must see it.
            address: "auto" or "host:port" of a running cluster, which is left running; None: Ray
                is started on this machine and stopped at the end.
            max_concurrent: jobs at once, by default as many as fit. On this machine it is at most
                that; on a cluster, jobs above it wait for the cluster to grow.
            begin_within: seconds from a job's start to its first progress; then it has failed.
            entry: what a worker calls with the job and a report function.
            early_stopping: by what trainings are cut that may be.
        """
        self._workdir = workdir
        self._address = address
        self._max_concurrent = max_concurrent
        self._begin_within = begin_within
        self._entry = entry
        self._early_stopping = early_stopping
        self._folder: str | None = None  # for Tune's and Train's own files, while it is open

    @contextlib.contextmanager
    def opened(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Stay connected over several runs of jobs no larger than these.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
        """
        with session(self._address, jobs), self._storage() as folder:
            self._folder = folder
            try:
                yield
            finally:
                self._folder = None

    def slots(self, job: Job) -> int:
        """Return how many jobs as large as this run at once; within `opened`."""
        return at_once(self._address, [job] * _MANY, self._max_concurrent)

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs, taken in their order, and return when they have ended.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
            KeyboardInterrupt: the user stopped it; no process of the jobs is left.
        """
        if not jobs:
            return
        if self._folder is None:
            with self.opened(jobs):
                self.run(jobs, on_event)
            return
        rule = self._early_stopping
        referee = None if rule is None else Referee(rule)
        listener = _Listener(jobs, on_event, self._begin_within, referee)
        # A folder for each run: Tune takes a second one in the same for a part of the first.
        tuner = self._tuner(jobs, listener, tempfile.mkdtemp(prefix="tune-", dir=self._folder))
        try:
            tuner.fit()
        except Exception:
            if listener.error is not None:  # Tune wraps what its callbacks raise
                raise listener.error from None
            raise

    @contextlib.contextmanager
    def _storage(self) -> Iterator[str]:
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

    def _tuner(self, jobs: Sequence[Job], listener: _Listener, storage: str) -> tune.Tuner:
        nodes = living_nodes()
        parcels = {
            job.id: Parcel(
                id=job.id,
                job=pickle.dumps(replace(job, folder=job.folder.absolute())),
                entry=self._entry,
                workers=job.workers,
                resources=resources_of(job),
                placement=placement_of(job, nodes),
                place_within=0.8 * self._begin_within,
                storage=storage,
                folder=str(job.folder.absolute()),
            )
            for job in jobs
        }
        assert len(parcels) == len(jobs), "two jobs have one id"
        there = DRIVER in ray.cluster_resources()
        driver = {DRIVER: 1} if there else {HEAD_NODE: 0.001}
        return tune.Tuner(
            tune.with_resources(
                tune.with_parameters(drive, parcels=parcels),
                tune.PlacementGroupFactory([driver]),
            ),
            param_space={"job": tune.grid_search(list(parcels))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once(self._address, jobs, self._max_concurrent),
                reuse_actors=True,  # the next job's driver has its imports behind it
                trial_name_creator=lambda trial: trial.config["job"],
                trial_dirname_creator=lambda trial: trial.config["job"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=storage,
                verbose=0,
                callbacks=[listener],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )


class _Told:
    """What a job's worker tells of its progress, as it comes."""

    def __init__(self, job: Job) -> None:
        self.job, self.path = job, job.folder / PROGRESS
        self._read = 0  # bytes

    def news(self) -> list[Progress]:
        """Return what is new; a line that is not whole yet waits."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return [Progress(**json.loads(line)) for line in whole.splitlines()]


class _Listener(TrialProgressCallback):  # type: ignore[misc]
    """Turns what Tune says into events, in place of the callback by which Tune prints it."""

    def __init__(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        begin_within: float,
        referee: Referee | None = None,
    ) -> None:
        super().__init__()
        self._referee = referee
        self._cut: dict[str, str] = {}  # why, by job
        self.error: Exception | None = None  # what `on_event` raised
        self._jobs = {job.id: job for job in jobs}
        self._on_event = on_event
        self._begin_within = begin_within
        self._waiting: dict[str, float] = {}  # since when for a first progress, by job
        self._reasons: dict[str, str] = {}
        self._told: dict[str, _Told] = {}  # what running jobs tell
        self._due = 0.0  # when they are asked next

    def __getstate__(self) -> dict[str, Any]:
        """Be empty in the file that Tune writes for a restore: the ledger does that here."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + FOLLOW_EVERY
            for told in list(self._told.values()):
                self._pass_on(told)
        for trial in trials:
            job = self._job(trial)
            if now - self._waiting.get(job.id, now) > self._begin_within:
                del self._waiting[job.id]
                self._reasons[job.id] = (
                    f"its worker did not begin within {self._begin_within:.0f} s"
                )
                ray.kill(trial.temporary_state.ray_actor)  # and all that it owns

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = self._job(trial)
        self._waiting[job.id] = time.monotonic()
        self._told[job.id] = _Told(job)
        self._emit(Started(job=job))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        job = self._job(trial)
        if result.get(REASON) is not None:
            self._reasons[job.id] = result[REASON]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._job(trial), "its worker left no result in {folder}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._job(trial), "a Ray process of this job died (killed, or out of memory)")

    def _end(self, job: Job, otherwise: str) -> None:
        """Emit how a job ended; free its worker's place, which outlives a killed controller."""
        self._waiting.pop(job.id, None)
        told = self._told.pop(job.id, _Told(job))
        self._pass_on(told)
        told.path.unlink(missing_ok=True)
        place = job.folder / PLACE
        if place.exists():
            group = ray.PlacementGroupID.from_hex(place.read_text(encoding="ascii"))
            remove_placement_group(PlacementGroup(group))
            place.unlink()
        (job.folder / CUT).unlink(missing_ok=True)
        reason = self._reasons.get(job.id)
        result = None if reason else read_result(job.folder)
        if result is None and reason is not None and reason == self._cut.get(job.id):
            self._emit(Cut(job=job, reason=reason))
        elif result is None:
            self._emit(Failed(job=job, reason=reason or otherwise.format(folder=job.folder)))
        else:
            self._emit(Finished(job=job, result=result))

    def _pass_on(self, told: _Told) -> None:
        for progress in told.news():
            self._waiting.pop(told.job.id, None)
            self._emit(Progressed(job=told.job, progress=progress))
            why = None if self._referee is None else self._referee.verdict(told.job, progress)
            if why is not None:
                self._cut[told.job.id] = why
                write_atomically(told.job.folder / CUT, why)

    def _emit(self, event: Event) -> None:
        if self.error is not None:
            return
        try:
            self._on_event(event)
        except Exception as error:
            self.error = error
            raise

    def _job(self, trial: Any) -> Job:
        return self._jobs[trial.config["job"]]
