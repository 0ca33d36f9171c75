"""The faults: what is done to a study that runs, and what it has to come to."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.worker import FULL, SCORING, TRAINING
from tests.faults.world import (
    CHECKPOINT_EVERY,
    STEPS,
    FaultCluster,
    MomentMissed,
    start_driver,
    wait_for_moment,
)

#: Seconds that a tracking store is away.
OUTAGE_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault of a schedule."""

    kind: str
    step: int  # of a training, from which on it may happen

    def __str__(self) -> str:
        return f"{self.kind} at step {self.step}"


@dataclass(kw_only=True)
class MetAttempt:
    """The attempt that a fault met, and when, in seconds since 1970."""

    folder: Path | None
    at: float
    moment: dict[str, Any] = field(default_factory=dict)  # what the attempt told there


@dataclass(kw_only=True)
class Case:
    """A study that runs, and what is known of its faults so far."""

    world: FaultCluster
    workdir: Path
    workers: int = 1  # of a training
    server: Server | None = None
    mounted: dict[str, Path | None] = field(default_factory=dict)  # small disks, where they are
    met: list[MetAttempt] = field(default_factory=list)
    fault: Fault = field(init=False)  # the one that is being done
    driver: subprocess.Popen[bytes] = field(init=False)
    now: MetAttempt = field(init=False)  # what the fault that is being done has met

    def start(self) -> None:
        """Start the study's driver."""
        tracking = None if self.server is None else self.server.uri
        self.driver = self.world.start(self.workdir, tracking=tracking, workers=self.workers)

    def sync(self) -> bool:
        """Send what the study could not, as its user would; return whether that is done."""
        tracked = [] if self.server is None else ["--tracking-uri", self.server.uri]
        return start_driver(self.workdir, *tracked, command=("sync", "small")).wait(300) == 0

    def kill_driver(self) -> None:
        """Leave no driver behind."""
        if self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()

    def wait_for_moment(self) -> dict[str, Any]:
        """Wait for the moment; return what the attempt told there."""
        kind = KINDS[self.fault.kind]
        folder, moment = wait_for_moment(
            self.workdir,
            self.driver,
            step=max(self.fault.step, kind.first_step),
            phases=kind.phases,
            job=kind.job,
            but=[met.folder for met in self.met],
        )
        self.now = MetAttempt(folder=folder, at=time.time(), moment=moment)
        return moment

    @property
    def disk(self) -> Path | None:
        """The small disk that the fault is about, where one could be mounted."""
        return self.mounted.get(KINDS[self.fault.kind].disk or "")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is done, and how the driver is to end where the study does not go through it."""

    inject: Callable[[Case], None]
    exits: tuple[int, ...] = (0,)  # what the driver that was met may end with
    phases: tuple[str, ...] = TRAINING  # in which of a trial's phases, by how they begin
    job: int = 1  # at least how many jobs the process that is met has begun
    first_step: int = 1  # before which nothing is there that could be damaged
    workers: int | None = None  # that a training has to have; None: it does not matter
    stall_after: float = 3600.0
    plan: Callable[[Fault], dict[str, Any]] = field(default=lambda fault: {})
    server: bool = False  # whether runs are tracked by a server
    disk: str | None = None  # folder of the work directory that is a small disk of its own
    repair: Callable[[Case], None] = field(default=lambda case: None)  # before it is run again
    order: int = 2  # of a schedule's faults: a lower one is done earlier


def count_workers(kinds: Sequence[str]) -> int:
    """Return how many workers a training has in a study that meets some kinds."""
    return max((KINDS[name].workers or 1 for name in kinds), default=1)


def _fits(name: str, others: Sequence[str]) -> bool:
    """Return whether a kind can come into a schedule beside others."""
    wanted = {KINDS[each].workers for each in (name, *others)} - {None}
    return name not in others and len(wanted) < 2


def draw_schedules(
    count: int, seed: int, *, each: int = 1, kinds: list[str] | None = None
) -> list[tuple[Fault, ...]]:
    """Return seeded schedules in which each kind comes about equally often.

    Kinds that want trainings of different numbers of workers do not meet.

    Args:
        count: how many.
        seed: of the draw.
        each: faults of one schedule, no two of one kind.
        kinds: to draw from; by default all.
    """
    draw = random.Random(seed)
    among = sorted(kinds or KINDS)
    drawn: list[tuple[Fault, ...]] = []
    left: list[str] = []
    while len(drawn) < count:
        one: list[str] = []
        while len(one) < each and any(_fits(name, one) for name in among):
            if not any(_fits(name, one) for name in left):
                left += draw.sample(among, len(among))
            one.append(left.pop(next(i for i, name in enumerate(left) if _fits(name, one))))
        one.sort(key=lambda name: KINDS[name].order)
        # Later ones come early in a training: it may be the last.
        steps = [draw.randint(1, STEPS // 2 if after else STEPS - 2) for after in range(len(one))]
        drawn.append(tuple(Fault(kind=n, step=s) for n, s in zip(one, steps, strict=True)))
    return drawn


def _kill_worker(case: Case) -> None:
    """Kill the process that makes the steps: a slot, or one of a trial's workers."""
    os.kill(case.wait_for_moment()["pid"], signal.SIGKILL)


def _kill_trial_driver(case: Case) -> None:
    case.wait_for_moment()
    _find_trial_driver(case).kill()


def _find_trial_driver(case: Case) -> psutil.Process:
    """Return the process that waits for the workers of the trial that was met."""
    found = [
        process
        for process in case.world.find_trial_drivers()
        if process.pid != case.now.moment["pid"]
    ]
    if not found:
        raise MomentMissed("the trial's driver has ended")
    return found[0]


def _kill_study_driver(case: Case) -> None:
    case.wait_for_moment()
    case.driver.kill()


def _interrupt(case: Case) -> None:
    case.wait_for_moment()
    case.driver.send_signal(signal.SIGINT)


def _terminate(case: Case) -> None:
    case.wait_for_moment()
    case.driver.send_signal(signal.SIGTERM)


def _kill_node(case: Case) -> None:
    case.world.restore_nodes()
    node = case.world.find_node(case.wait_for_moment()["pid"])
    case.world.cluster.remove_node(node, allow_graceful=False)


def _preempt_node(case: Case) -> None:
    case.world.restore_nodes()
    node = case.world.find_node(case.wait_for_moment()["pid"])
    case.world.cluster.remove_node(node, allow_graceful=True)


def _preempt_driver_node(case: Case) -> None:
    case.world.restore_nodes()
    case.wait_for_moment()
    node = case.world.find_node(_find_trial_driver(case).pid)
    case.world.cluster.remove_node(node, allow_graceful=True)


def _suspend_worker(case: Case) -> None:
    os.kill(case.wait_for_moment()["pid"], signal.SIGSTOP)


def _cut_checkpoint(case: Case) -> None:
    """Kill a worker, and cut its newest checkpoint as a crash of its machine might."""
    pid = case.wait_for_moment()["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert case.now.folder is not None
    trial = case.now.folder.parent  # an attempt that has just gone on has none of its own yet
    whole = sorted(trial.glob("attempt-*/checkpoints/step-*"), key=lambda folder: folder.name)
    assert whole, f"no checkpoint to cut in {trial}"
    state = whole[-1] / "state.pt"
    os.truncate(state, state.stat().st_size // 2)
    os.kill(pid, signal.SIGKILL)


def _wait_for_nan(case: Case) -> None:
    """Wait for the driver's end: the worker itself writes NaN."""
    case.driver.wait(600)
    case.now = MetAttempt(folder=None, at=time.time())


def _fill_disk(case: Case) -> None:
    case.wait_for_moment()
    if case.disk is not None:
        fill_disk(case.disk)
    else:
        _flag_file(case).touch()
    case.driver.wait(600)


def _empty_disk(case: Case) -> None:
    if case.disk is not None:
        (case.disk / FILLER).unlink()
    else:
        _flag_file(case).unlink()


def _flag_file(case: Case) -> Path:
    ledger = case.fault.kind == "disk full at the ledger"
    return case.workdir / (f"{FULL}-ledger" if ledger else FULL)


def _restart_server(case: Case) -> None:
    case.wait_for_moment()
    assert case.server is not None
    case.server.kill()
    time.sleep(OUTAGE_SECONDS)
    case.server.start()


def _lock_store(case: Case) -> None:
    case.wait_for_moment()
    database = case.workdir / "mlflow.db" if case.server is None else case.server.database
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as store:
        store.isolation_level = None
        store.execute("begin exclusive")
        time.sleep(OUTAGE_SECONDS)
        store.execute("rollback")


KINDS: dict[str, Kind] = {
    "slot killed": Kind(inject=_kill_worker, workers=1),
    # First, since a fault before it may leave no slot that has had a trial.
    "slot killed in a second trial": Kind(inject=_kill_worker, workers=1, job=2, order=0),
    "slot killed while scoring": Kind(inject=_kill_worker, workers=1, phases=SCORING),
    "one of two workers killed": Kind(inject=_kill_worker, workers=2),
    "trial's driver killed": Kind(inject=_kill_trial_driver, workers=2),
    "driver's node preempted": Kind(inject=_preempt_driver_node, workers=2),
    "study's driver killed": Kind(inject=_kill_study_driver, exits=(-9,)),
    "node killed": Kind(inject=_kill_node),
    "node preempted": Kind(inject=_preempt_node),
    "Ctrl-C": Kind(inject=_interrupt, exits=(130,)),
    "SIGTERM": Kind(inject=_terminate, exits=(130,)),
    "worker hangs": Kind(inject=_suspend_worker, stall_after=90.0),
    "checkpoint cut short": Kind(inject=_cut_checkpoint, first_step=CHECKPOINT_EVERY + 1),
    # Early, since it meets the first training there is.
    "NaN loss": Kind(
        inject=_wait_for_nan, exits=(1,), plan=lambda fault: {"nan": max(fault.step, 2)}, order=1
    ),
    "disk full at a checkpoint": Kind(
        inject=_fill_disk, exits=(1,), disk="trials", repair=_empty_disk
    ),
    "disk full at the ledger": Kind(
        inject=_fill_disk, exits=(2,), disk="ledger", repair=_empty_disk
    ),
    "tracking server gone": Kind(inject=_restart_server, server=True),
    "tracking store locked": Kind(inject=_lock_store),
}

FILLER = "filler"


def fill_disk(disk: Path) -> None:
    """Take all that a small disk has free."""
    with (disk / FILLER).open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


@contextlib.contextmanager
def mount_small_disk(folder: Path, size: str = "160m") -> Iterator[Path | None]:
    """Mount a small disk at a folder; yield None where none can be mounted."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = None if mount is None else subprocess.run(command, capture_output=True, check=False)
    if done is None or done.returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Server:
    """An MLflow server over a work directory's database, on loopback."""

    def __init__(self, workdir: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self.database = workdir / "server.db"
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--backend-store-uri", f"sqlite:///{self.database}", "--workers", "1",
            "--artifacts-destination", str(workdir / "server-artifacts"),
        ]  # fmt: skip
        self._log = workdir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import urllib.request

        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.5)
        raise TimeoutError("the tracking server does not answer")

    def kill(self) -> None:
        """End it and all its children without a word."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
        self._process.kill()
        self._process.wait()
        self._process = None
