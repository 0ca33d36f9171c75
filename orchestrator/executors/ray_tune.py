"""Jobs on Ray: Tune schedules them, each is one run of Train with the job's workers.

What happens in a trial's own processes is in ray_worker.py.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray import tune

from orchestrator.executors.base import Again, Event, Job
from orchestrator.executors.desk import Desk, FarDesk
from orchestrator.executors.ray_early import Referee
from orchestrator.executors.ray_follow import Listener
from orchestrator.executors.ray_queue import Queue
from orchestrator.executors.ray_session import (
    DRIVER,
    HEAD_NODE,
    at_once,
    living_nodes,
    placement_of,
    resources_of,
    session,
)
from orchestrator.executors.ray_worker import PLACE, PROGRESS, Parcel, drive
from orchestrator.stopping import Stop
from orchestrator.storage.remote import Remote
from orchestrator.study_early import EarlyStopping

#: More jobs than any cluster runs at once.
_MANY = 4096
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
        with session(self._address, jobs), self._storage() as folder:
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
        rule = self._early_stopping
        # A folder for each run: Tune takes a second one in the same for a part of the first.
        storage = tempfile.mkdtemp(prefix="tune-", dir=self._folder)
        queue = Queue(
            jobs,
            at_once=at_once(self._address, jobs, self._max_concurrent),
            parcel=lambda job: self._parcel(job, storage),
            stop=self._stop,
        )
        desk = Desk()
        if self._remote is not None:
            desk = FarDesk(self._remote, self._workdir, (PROGRESS, PLACE))
        listener = Listener(
            queue,
            on_event,
            again,
            begin_within=self._begin_within,
            stop=self._stop,
            desk=desk,
            referee=None if rule is None else Referee(rule),
        )
        try:
            self._tuner(queue, listener, storage).fit()
        except Exception:
            if listener.error is not None:  # Tune wraps what its callbacks raise
                raise listener.error from None
            raise
        finally:
            desk.close()
        if self._stop.asked:
            raise KeyboardInterrupt

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

    def _parcel(self, job: Job, storage: str) -> Parcel:
        elsewhere = None
        if self._remote is not None:
            # Imported here: it takes what only a worker needs otherwise.
            from orchestrator.executors.elsewhere import Elsewhere

            token = f"{job.id}-{uuid.uuid4().hex[:12]}"
            elsewhere = pickle.dumps(
                Elsewhere(remote=self._remote, workdir=self._workdir.absolute(), token=token)
            )
        return Parcel(
            id=job.id,
            job=pickle.dumps(replace(job, folder=job.folder.absolute())),
            entry=self._entry,
            workers=job.workers,
            resources=resources_of(job),
            placement=placement_of(job, living_nodes()),
            place_within=0.8 * self._begin_within,
            storage=storage,
            folder=str(job.folder.absolute()),
            elsewhere=elsewhere,
        )

    def _tuner(self, queue: Queue, listener: Listener, storage: str) -> tune.Tuner:
        there = DRIVER in ray.cluster_resources()
        driver = {DRIVER: 1} if there else {HEAD_NODE: 0.001}
        return tune.Tuner(
            tune.with_resources(drive, tune.PlacementGroupFactory([driver])),
            tune_config=tune.TuneConfig(
                search_alg=queue,
                num_samples=_ATTEMPTS,
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
