"""One trial whose workers sit on two machines, and one machine is lost; prints figures as JSON.

    python tests/cluster/two_machines.py
    python tests/cluster/two_machines.py hsdp    # of the two that one alone

A Ray cluster of a head and a worker in namespaces of this machine (machines.py), two CPUs each and
a shared disk; a trial has four workers. `fsdp`, its reference read from stores: the worker machine
is taken away in mid-training, another one takes its place, and the run goes on by itself. `hsdp`,
its reference computed in the step: the machine is taken away and none comes; the run is stopped,
and goes on with the two workers that the head holds. Either way the curve is to be that of one
process. Run by `make test-cluster`, and by tests/cluster/test_loopback.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
import machines  # noqa: E402
from loopback import BIN, ROOT, timed, wait_until  # noqa: E402

PORT, CPUS, WORKERS = 6379, 2, 4
STUDY = """
study: two-machines
question: Does a trial on two machines train as one in one process does?
recipe: recipe.yaml
factors:
  objective: [chip]
seeds: [0]
benchmarks:
  report: [{name: shapes, limit: 20}]
primary: {metric: shapes/chair_i, goal: minimize}
"""
#: Of the recipe `shapes`: the vision encoder is trained too, and a checkpoint is early to be had.
TRAINING: dict[str, Any] = {
    "vision_encoder": "trained",
    "data": {"source": "shapes", "limit": 64},
    "training": {"batch_size": 8, "epochs": 3},
}
ENGINE: dict[str, Any] = {"threads": 1, "micro_batch": 2, "checkpoint_every": 6}
#: Seconds that a run may take, on a machine that has much else to do.
MAX_SECONDS = 1500
#: The card by which a machine's processes reach the others'.
NETWORK = {"GLOO_SOCKET_IFNAME": "eth0"}


def main(*kinds: str) -> None:
    """Do it all, or these kinds alone, and print the figures."""
    head, second = machines.start_machines(2)
    figures: dict[str, Any] = {}
    with timed(figures, "the study in one process"):
        alone = Run(head, "alone", workers=1, parallel="auto", reference="off", inline=True)
        assert alone.wait() == 0, alone.output
    steps = 24  # three epochs of 64 pairs
    assert len(alone.read_losses()) == steps
    assert len(set(alone.read_losses())) > steps / 2
    with timed(figures, "up"):
        join_cluster(head, head)
        join_cluster(second, head)
        wait_until(lambda: count_alive_nodes(head) == 2, MAX_SECONDS)
    if "fsdp" in kinds:
        begun = time.monotonic()
        run = Run(head, "fsdp", workers=WORKERS, parallel="fsdp", reference="fp32")
        lost = run.kill_machine(second)
        second = machines.Machine("machine3", 4)
        join_cluster(second, head)
        assert run.wait() == 0, run.output
        seconds = round(time.monotonic() - begun, 1)
        figures["fsdp"] = run.read_figures(alone) | lost | {"seconds": seconds}
    if "hsdp" in kinds:
        wait_until(lambda: count_alive_nodes(head) == 2, MAX_SECONDS)
        begun = time.monotonic()
        run = Run(head, "hsdp", workers=WORKERS, parallel="hsdp", reference="off")
        lost = run.kill_machine(second)
        wait_until(lambda: "worker process died" in run.output, MAX_SECONDS)
        run.interrupt()
        assert run.wait() == 130, run.output
        run = Run(head, "hsdp", workers=CPUS, parallel="hsdp", reference="off")
        assert run.wait() == 0, run.output
        seconds = round(time.monotonic() - begun, 1)
        figures["hsdp"] = run.read_figures(alone) | lost | {"seconds": seconds}
    print(json.dumps(figures))


class Run:
    """A run of the study on a machine, and what it says."""

    def __init__(
        self,
        machine: machines.Machine,
        name: str,
        *,
        workers: int,
        parallel: str,
        reference: str,
        inline: bool = False,
    ) -> None:
        """Start it; where its folder holds an earlier one, it goes on from that."""
        self.machine, self.folder, self.output = machine, machines.SHARED / name, ""
        self.folder.mkdir(exist_ok=True)
        tree = yaml.safe_load((ROOT / "chip_core/recipes/shapes.yaml").read_text())
        engine = ENGINE | {"workers_per_trial": workers, "parallel": parallel}
        tree |= TRAINING | {"engine": engine, "reference_cache": reference}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
        (self.folder / "study.yaml").write_text(STUDY)
        how = ["--executor", "inline"] if inline else ["--address", f"{machine.ip}:{PORT}"]
        self.process = subprocess.Popen(
            [*machine.enter_command, "env", "-C", str(self.folder), BIN / "chip-ablate", "run",
             "study.yaml", "--workdir", str(self.folder / "work"), *how],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | NETWORK,
        )  # fmt: skip
        self.listener = threading.Thread(target=self._collect_output, daemon=True)
        self.listener.start()

    def _collect_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            print(line, end="", file=sys.stderr, flush=True)

    def interrupt(self) -> None:
        """Stop it as Ctrl-C does: nsenter, which waits for it, passes no signal on."""
        os.kill(machines.wait_for_child(self.process.pid), signal.SIGINT)

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        code = self.process.wait(MAX_SECONDS)
        self.listener.join()
        return code

    def kill_machine(self, machine: machines.Machine) -> dict[str, Any]:
        """Take a machine away in mid-training, once there is a checkpoint; tell of it."""
        wait_until(lambda: self.list_checkpoints() or self.process.poll() is not None, MAX_SECONDS)
        (first, *_) = self.list_checkpoints()
        there = [line for line in machine.list_processes() if "RayTrainWorker" in line]
        machine.kill()
        state = json.loads(first.read_text())
        shards = [name for name in state["files"] if name.startswith("shards/")]
        assert "finished" not in self.output and self.process.poll() is None, self.output
        return {
            "workers on the lost machine": len(there),
            "checkpoint": {"after step": state["step"], "written by": len(shards)},
        }

    def list_checkpoints(self) -> list[Path]:
        """Return the manifests of its checkpoints, oldest first."""
        return sorted((self.folder / "work").glob("**/checkpoints/step-*/manifest.json"))

    def read_losses(self) -> list[float]:
        """Return its trial's loss after each step, of the attempt that came to the end."""
        (result,) = (
            path.parent
            for path in (self.folder / "work").glob("**/result.json")
            if (path.parent / "curves.jsonl").exists()
        )
        lines = (result / "curves.jsonl").read_text().splitlines()
        return [json.loads(line)["figures"]["loss"] for line in lines]

    def read_figures(self, alone: Run) -> dict[str, Any]:
        """Return how far its curve is from another run's, and how it came to its end."""
        losses, right = self.read_losses(), alone.read_losses()
        assert len(losses) == len(right)
        ledger = (self.folder / "work/ledger/ledger.jsonl").read_text().splitlines()
        (finished,) = (
            event
            for event in map(json.loads, ledger)
            if event["event"] == "finished" and event["trained"]
        )
        notes = [note for note in finished["notes"] if note.startswith("resumed")]
        return {
            "steps": len(losses),
            "largest relative difference of the loss": max(
                abs(one / other - 1) for one, other in zip(losses, right, strict=True)
            ),
            "resumed": [note.split(" from ")[0] for note in notes],
            "attempts": finished["attempt"],
            "engine": finished["engine"],
        }


def join_cluster(machine: machines.Machine, head: machines.Machine) -> None:
    """Have a machine be a node of the cluster, with its CPUs; its head where it is that one."""
    if machine is head:
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        where.append('--resources={"chip_driver": 8}')
    else:
        where = [f"--address={head.ip}:{PORT}"]
    done = subprocess.run(
        [*machine.enter_command, BIN / "ray", "start", *where, f"--node-ip-address={machine.ip}",
         f"--num-cpus={CPUS}", "--object-store-memory=100000000", "--disable-usage-stats"],
        capture_output=True, text=True, check=False, env=os.environ | NETWORK,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def count_alive_nodes(head: machines.Machine) -> int:
    """Return how many nodes the cluster has."""
    script = (
        "import ray; ray.init('auto', logging_level=50); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    return int(head.run(sys.executable, "-c", script).split()[-1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        os.environ |= {
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            # On a busy machine a process of Ray's takes longer than a minute to start.
            "RAY_worker_register_timeout_seconds": "600",
        }
        os.environ.setdefault("RAY_worker_niceness", "0")
        main(*sys.argv[2:])
    else:
        asked = sys.argv[1:] or ["fsdp", "hsdp"]
        why = machines.find_obstacle()
        if why is not None:
            raise SystemExit(f"test-cluster: {why}")
        inside = machines.make_namespace_command(Path(__file__), "inside", *asked)
        os.execvp(inside[0], inside)  # who ends this process ends all of it
