"""A cluster of three nodes on this machine, and a study small enough to be spoilt twenty times."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from orchestrator.executors.ray.session import PROCESS_ENVIRONMENT
from orchestrator.jobs.job import restore_signal_handlers
from tests.faults.worker import MOMENTS, PLAN, TRAINING

ROOT = Path(__file__).parents[2]
#: Steps of a training, and of how many it leaves a checkpoint.
STEPS, CHECKPOINT_EVERY = 8, 2
#: CPUs of a node, as Ray counts them.
CPUS = 2

STUDY = """
study: small
question: Is anything lost?
recipe: recipe.yaml
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 8}]
primary: {metric: shapes/chair_i, goal: minimize}
"""


def make_recipe(stall_after: float, workers: int = 1) -> str:
    """Make the embedded world's recipe with few steps and a checkpoint after every second.

    A trial takes all CPUs of a node, so that a slot has one job after another.
    """
    from chip_core import recipes

    text = recipes.find_recipe("shapes").read_text()
    for old, new in (
        ("batch_size: 16", "batch_size: 2"),
        ("max_steps: 60", f"max_steps: {STEPS}"),
        ("reference_cache: fp32", "reference_cache: 'off'"),
        (
            "  micro_batch: 16",
            f"  micro_batch: {2 // workers}\n  checkpoint_every: {CHECKPOINT_EVERY}\n"
            f"  stall_after: {stall_after}\n"
            f"  workers_per_trial: {workers}\n  cpus_per_worker: {CPUS // workers}",
        ),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class MomentMissed(Exception):
    """The study ended before the moment that a fault was meant for."""


class FaultCluster:
    """The cluster: a head with nothing on it, and two nodes with room for a trial each."""

    def __init__(self, temp: Path) -> None:
        os.environ.update(make_environment())
        # Ray 2.60 writes the cluster's address below it, which only a plain start makes.
        Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray").mkdir(parents=True, exist_ok=True)
        with restore_signal_handlers():  # starting a node takes them
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "temp_dir": str(temp),
                    # From it Ray Train learns that a dead run's place is to be freed.
                    "include_dashboard": True,
                    # Any port that is free: with a number Ray 2.60 takes that one or fails.
                    "dashboard_port": None,
                    "object_store_memory": 80 * 1024**2,
                },
            )
        self.restore_nodes()

    def restore_nodes(self) -> None:
        """Have two nodes again: a fault takes one, and trials need another."""
        with restore_signal_handlers():
            while len(self.cluster.worker_nodes) < 2:
                self.cluster.add_node(
                    num_cpus=CPUS,
                    resources={"chip_driver": 2},
                    object_store_memory=80 * 1024**2,
                )

    def find_node(self, pid: int) -> Any:
        """Return the node whose raylet started a process."""
        above = {parent.pid for parent in psutil.Process(pid).parents()}
        for node in self.cluster.worker_nodes:
            if node.all_processes["raylet"][0].process.pid in above:
                return node
        raise LookupError(f"process {pid} is on no node")

    def find_trial_drivers(self) -> list[psutil.Process]:
        """Return the processes of Tune's trials, newest first."""
        found = []
        for node in self.cluster.worker_nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "ImplicitFunc" in " ".join(process.cmdline()):
                        found.append(process)
        return sorted(found, key=lambda process: -process.create_time())

    def start(
        self, workdir: Path, *, tracking: str | None = None, workers: int = 1
    ) -> subprocess.Popen[bytes]:
        """Start the study's driver; what it says goes to `driver.log`.

        Trials of several workers run one at a time: whose driver is met is known so.
        """
        tracked = [] if tracking is None else ["--tracking-uri", tracking]
        alone = [] if workers == 1 else ["--max-concurrent", "1"]
        return start_driver(workdir, "--address", self.cluster.address, *tracked, *alone)

    def close(self) -> None:
        """End all of it."""
        self.cluster.shutdown()


def make_environment() -> dict[str, str]:
    """Return what the study's processes are to find beside what this one has."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**PROCESS_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def start_driver(
    workdir: Path, *options: str, command: tuple[str, ...] = ("run", "study.yaml")
) -> subprocess.Popen[bytes]:
    """Start a driver of the study, or another command; what it says goes to `driver.log`."""
    with (workdir / "driver.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.program", *command,
             "--workdir", str(workdir), *options],
            cwd=workdir,
            env={**os.environ, **make_environment()},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def open_cluster() -> Iterator[FaultCluster]:
    """Open a cluster, and leave nothing of it afterwards."""
    # Sockets lie in it, and their paths must be short.
    temp = Path(tempfile.mkdtemp(prefix="cf-", dir=os.environ.get("RAY_TMPDIR", "/tmp")))
    world = FaultCluster(temp)
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(temp, ignore_errors=True)


def write_study(
    workdir: Path, *, stall_after: float = 3600.0, workers: int = 1, **plan: Any
) -> None:
    """Write a study into a work directory, and what workers themselves are to get wrong."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "study.yaml").write_text(STUDY)
    (workdir / "recipe.yaml").write_text(make_recipe(stall_after, workers))
    (workdir / PLAN).write_text(json.dumps(plan))


def read_moments(workdir: Path) -> dict[Path, list[dict[str, Any]]]:
    """Return what each attempt has told, by its folder, in order."""
    found = {}
    for path in sorted(workdir.glob(f"trials/*/attempt-*/{MOMENTS}")):
        lines = path.read_bytes().split(b"\n")[:-1]
        found[path.parent] = [json.loads(line) for line in lines]
    return found


def wait_for_moment(
    workdir: Path,
    driver: subprocess.Popen[bytes],
    *,
    step: int,
    phases: tuple[str, ...] = TRAINING,
    job: int = 1,
    but: Sequence[Path | None] = (),
    timeout: float = 600.0,
) -> tuple[Path, dict[str, Any]]:
    """Wait until a trial is where a fault is meant for it; return its attempt's folder and moment.

    Args:
        workdir: the study's.
        driver: the study's.
        step: of a training, or a later one: one that was gone on with may be past it.
        phases: how the phase's name begins.
        job: which of its process's jobs it is at least.
        but: attempts that were met before.
        timeout: seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for folder, told in read_moments(workdir).items():
            if folder in but or not told or (folder / "result.json").exists():
                continue
            last = told[-1]
            if not last["phase"].startswith(phases) or last["job"] < job:
                continue
            if not last["phase"].startswith(TRAINING) or step <= last["done"] < STEPS:
                return folder, last
        if driver.poll() is not None:
            log = (workdir / "driver.log").read_text(errors="replace")[-2000:]
            raise MomentMissed(f"the driver ended before the moment came:\n{log}")
        time.sleep(0.02)
    raise TimeoutError(f"no trial came to {' or '.join(phases)} {step} in {timeout:.0f} s")
