"""Jobs on Ray: Tune schedules them, each is one run of Train with one worker.

What happens in a trial's own processes is in ray_worker.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray._private.worker
import torch
from ray import tune
from ray.util.placement_group import PlacementGroup, remove_placement_group

from chip_core.errors import UserError
from chip_core.trial import Progress, read_result
from orchestrator.executors.base import Event, Failed, Finished, Job, Progressed, Started
from orchestrator.executors.ray_worker import PLACE, PROGRESS, REASON, Parcel, drive

#: A custom resource that jobs' drivers take: no CPU, so that workers always find one.
DRIVER = "chip_driver"

#: For every process of a trial; the caller's own settings win. Train's pace and its helpers
#: (a trial then ends 6 s sooner), threads that wait without spinning, nothing sent home.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

#: For Tune in this process: no tables, no log files of its own, no grip on Ctrl-C.
_TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

#: Bytes of a local Ray's object store; what passes through it is small.
_OBJECT_STORE = 256 * 1024**2


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
        """
        self._workdir = workdir
        self._address = address
        self._max_concurrent = max_concurrent
        self._begin_within = begin_within
        self._entry = entry

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> None:
        """Run all jobs, begun in their order, and return when they have ended.

        Raises:
            UserError: no such cluster, or a worker can never be placed.
            KeyboardInterrupt: the user stopped it; no process of the jobs is left.
        """
        if not jobs:
            return
        for name, value in (ENVIRONMENT | _TUNE).items():
            os.environ.setdefault(name, value)
        self._check()
        listener = _Listener(jobs, on_event, self._begin_within)
        with _quiet(), self._ray(jobs), self._storage() as storage:
            tuner = self._tuner(jobs, listener, storage)
            try:
                tuner.fit()
            except Exception:
                if listener.error is not None:  # Tune wraps what its callbacks raise
                    raise listener.error from None
                raise

    def _check(self) -> None:
        if self._address is not None and "://" in self._address:
            raise UserError(
                f"{self._address}: Ray's client protocol is not supported: "
                "run on the cluster's head node with the address auto, or submit it as a Ray job"
            )
        if ray.is_initialized():
            raise UserError("this process is connected to Ray already: call ray.shutdown() first")

    @contextlib.contextmanager
    def _ray(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Be connected to a cluster that can place the jobs' workers."""
        folder: str | None = None
        try:
            with _signals_kept():
                if self._address is None:
                    here = _this_machine()
                    _slots(jobs, [here], "this machine")
                    # A short path: sockets lie in it.
                    folder = tempfile.mkdtemp(
                        prefix="chip-", dir=os.environ.get("RAY_TMPDIR", "/tmp")
                    )
                    ray.init(
                        address="local",
                        num_cpus=here["CPU"],
                        num_gpus=here["GPU"],
                        resources={DRIVER: len(jobs)},
                        object_store_memory=_OBJECT_STORE,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.CRITICAL,
                        _temp_dir=folder,
                    )
                else:
                    self._connect()
            yield
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _connect(self) -> None:
        try:
            ray.init(
                address=self._address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={
                    "env_vars": {name: os.environ[name] for name in ENVIRONMENT},
                },
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"no Ray cluster at the address {self._address}: {first}") from None

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
        parcels = {
            job.id: Parcel(
                id=job.id,
                job=pickle.dumps(job),
                entry=self._entry,
                resources=_resources(job),
                place_within=0.8 * self._begin_within,
                storage=storage,
            )
            for job in jobs
        }
        assert len(parcels) == len(jobs), "two jobs have one id"
        driver = {"CPU": 0, DRIVER: 1} if DRIVER in ray.cluster_resources() else {"CPU": 0}
        return tune.Tuner(
            tune.with_resources(
                tune.with_parameters(drive, parcels=parcels),
                tune.PlacementGroupFactory([driver]),
            ),
            param_space={"job": tune.grid_search(list(parcels))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=self._at_once(jobs),
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

    def _at_once(self, jobs: Sequence[Job]) -> int:
        """Return how many jobs run at once."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if self._address is None:
            return min(self._max_concurrent or len(jobs), _slots(jobs, nodes, "this machine"))
        wanted = self._max_concurrent or _slots(
            jobs,
            nodes,
            "the cluster",
            "; if it grows by itself, say how many jobs may run at once",
        )
        drivers = int(ray.cluster_resources().get(DRIVER, len(jobs)))
        return max(1, min(wanted, drivers))


class _Listener(tune.Callback):
    """Turns what Tune says into events."""

    def __init__(
        self, jobs: Sequence[Job], on_event: Callable[[Event], None], begin_within: float
    ) -> None:
        self.error: Exception | None = None  # what `on_event` raised
        self._jobs = {job.id: job for job in jobs}
        self._on_event = on_event
        self._begin_within = begin_within
        self._waiting: dict[str, float] = {}  # since when for a first progress, by job
        self._places: dict[str, str] = {}  # placement groups, by job
        self._reasons: dict[str, str] = {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
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
        self._emit(Started(job=job))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        job = self._job(trial)
        if PLACE in result:
            self._places[job.id] = result[PLACE]
        if result.get(REASON) is not None:
            self._reasons[job.id] = result[REASON]
        if PROGRESS in result:
            self._waiting.pop(job.id, None)
            self._emit(Progressed(job=job, progress=Progress(**result[PROGRESS])))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._job(trial), "its worker left no result in {folder}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(self._job(trial), "a Ray process of this job died (killed, or out of memory)")

    def _end(self, job: Job, otherwise: str) -> None:
        """Emit how a job ended; free its worker's place, which outlives a killed controller."""
        self._waiting.pop(job.id, None)
        if place := self._places.pop(job.id, None):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(place)))
        reason = self._reasons.get(job.id)
        result = None if reason else read_result(job.folder)
        if result is None:
            self._emit(Failed(job=job, reason=reason or otherwise.format(folder=job.folder)))
        else:
            self._emit(Finished(job=job, result=result))

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


def _resources(job: Job) -> dict[str, float]:
    engine = job.config.engine
    gpus = {"GPU": engine.gpus_per_worker} if engine.gpus_per_worker else {}
    return {"CPU": float(engine.cpus_per_worker)} | gpus


def _this_machine() -> dict[str, float]:
    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}


def _slots(
    jobs: Sequence[Job], nodes: Sequence[dict[str, float]], where: str, hint: str = ""
) -> int:
    """Return how many workers of the largest job fit at once.

    Raises:
        UserError: not even one.
    """
    fewest = len(jobs)
    for wanted in {tuple(_resources(job).items()) for job in jobs}:
        slots = sum(
            int(min(node.get(name, 0) / amount for name, amount in wanted)) for node in nodes
        )
        if slots == 0:
            asked = " and ".join(f"{amount:g} {name}" for name, amount in wanted)
            there = "; ".join(
                " and ".join(f"{node.get(name, 0):g} {name}" for name, _ in wanted)
                for node in nodes
            )
            raise UserError(
                f"a worker is to have {asked}, and {where} has {there or 'no node'}: "
                f"lower engine.cpus_per_worker or engine.gpus_per_worker{hint}"
            )
        fewest = min(fewest, slots)
    return fewest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray off the terminal: its loggers, and errors that it prints past them."""
    logger = logging.getLogger("ray")
    level, print_error = logger.level, ray._private.worker.print_to_stdstream
    logger.setLevel(logging.CRITICAL)
    ray._private.worker.print_to_stdstream = lambda *arguments, **options: None
    try:
        yield
    finally:
        logger.setLevel(level)
        ray._private.worker.print_to_stdstream = print_error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Give the caller's signal handlers back: starting Ray replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
