"""`ray up` of cluster.yaml, a study by job, `ray down`, over real sshd; prints figures as JSON.

Two machines in namespaces of this one (machines.py). What differs from cluster.yaml is what it says
to fill in. Run by `make test-cluster`, and by tests/cluster/test_loopback.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
import machines  # noqa: E402
import ports  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
VENV = Path("/opt/chip-ablate/.venv")  # as cluster.yaml has it
BIN = Path(sys.executable).parent
FILE = machines.BASE / "cluster.yaml"
WORK = machines.BASE / "client-work"
#: Seconds that the cluster may take to come up, on a machine that has much else to do.
MAX_SECONDS = 1200
STUDY = """
study: loopback
question: Does a study on a cluster come to its report?
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 20}]
primary: {metric: shapes/chair_i, goal: minimize}
"""


def main() -> None:
    """Do it all, and print the figures."""
    head, worker = all_machines = machines.start_machines(2)
    for machine in all_machines:
        machine.run("sh", "-ec", f"mkdir -p {VENV.parent}; ln -s {BIN.parent} {VENV}")
    write_cluster_file(head, worker)
    WORK.mkdir()
    (WORK / "loopback.yaml").write_text(STUDY)
    figures: dict[str, Any] = {}
    run_chip_ablate("cluster", "check", str(FILE))
    with timed(figures, "up: head"):
        run_command("ray", "up", "-y", str(FILE))
    with timed(figures, "up: until the worker answers, after the head"):
        wait_until(lambda: is_up(worker), MAX_SECONDS)
        wait_until(lambda: not find_live_problems(), MAX_SECONDS)
    with timed(figures, "study"):
        result = run_study()
    figures["arms"] = len(result["arms"])
    figures["executed"] = result["executed"]
    figures["report"] = sorted(Path(path).name for path in result["report"])
    assert all(Path(path).is_file() for path in result["report"]), result["report"]
    # As from another machine, which knows the cluster's file alone.
    again = json.loads(
        run_chip_ablate("attach", "--cluster", str(FILE), "--workdir", "other", "--json").stdout
    )
    assert again["executed"] == result["executed"]
    assert all(Path(path).is_file() and "/other/" in path for path in again["report"]), again
    with timed(figures, "stop of a second study"):
        running = stop_second_study(all_machines, head)
    figures["listening"] = running
    figures["let in without the token"] = [
        row for row in running if any(ports.grants_access(row[how]) for how in ("without", "wrong"))
    ]
    figures["keeps the head up"] = query_head_activity(head)
    with timed(figures, "down"):
        run_command("ray", "down", "-y", str(FILE))
    figures["processes left"] = {"head": list_ray_processes(head)}
    with timed(figures, "down: worker, after the head"):
        wait_until(lambda: not list_ray_processes(worker), MAX_SECONDS)
    print(json.dumps(figures))


def is_up(machine: machines.Machine) -> bool:
    """Return whether a machine's Ray listens."""
    return "ray::DashboardA" in machine.run("ss", "-ltnpH")


def find_live_problems() -> list[dict[str, str]]:
    """Return what `cluster check --live` finds."""
    done = subprocess.run(
        [BIN / "chip-ablate", "cluster", "check", FILE, "--live", "--json"],
        cwd=WORK, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr[-2000:], file=sys.stderr)
    problems: list[dict[str, str]] = json.loads(done.stdout)["problems"]
    return problems


def write_cluster_file(
    head: machines.Machine, *workers: machines.Machine, storage: str | None = None
) -> None:
    """Write cluster.yaml with its FILL IN places filled in; `storage` replaces a shared disk."""
    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    content["provider"] |= {"head_ip": head.ip, "worker_ips": [worker.ip for worker in workers]}
    if storage is not None:
        del content["metadata"]["chip_ablate"]["shared"]
        content["metadata"]["chip_ablate"]["storage"] = storage
    content["auth"] = {"ssh_user": "root", "ssh_private_key": f"{machines.BASE}/key"}
    content["metadata"]["chip_ablate"]["worker"] = {"CPU": os.cpu_count()}
    content["min_workers"] = content["max_workers"] = len(workers)
    FILE.write_text(yaml.safe_dump(content, sort_keys=False))


def run_study() -> dict[str, Any]:
    """Run the study by job; the connection is cut once on the way."""
    process = subprocess.Popen(
        [BIN / "chip-ablate", "run", "loopback.yaml", "--cluster", FILE, "--json",
         "--set", "training.max_steps=3"],
        cwd=WORK, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    output, cut = "", False
    for line in process.stderr:
        output += line
        print(line, end="", file=sys.stderr)
        if not cut and "trials" in line and "runs on" not in line:
            cut = True
            subprocess.run(["pkill", "-9", "-f", "ssh .* -N .*8265"], check=True)
    printed = process.communicate()[0]
    assert process.returncode == 0, (process.returncode, output)
    assert cut and "connection lost" in output, output
    result: dict[str, Any] = json.loads(printed)
    return result


def stop_second_study(
    all_machines: list[machines.Machine], head: machines.Machine
) -> list[dict[str, Any]]:
    """Leave a study alone by Ctrl-C, stop it, and see that it was recorded as stopped.

    Returns:
        who listens while a trial runs.
    """
    process = subprocess.Popen(
        [BIN / "chip-ablate", "run", "loopback.yaml", "--cluster", FILE,
         "--set", "training.max_steps=9999", "--set", "reference_cache=off"],
        cwd=WORK, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        print(line, end="", file=sys.stderr)
        if "seed 0: started" in line:
            break
    rows = probe_listeners(all_machines, head)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[1]
    assert process.returncode == 130 and "the job continues" in output, (process.returncode, output)
    run_chip_ablate("attach", "--stop")
    ended = subprocess.run(
        [BIN / "chip-ablate", "attach"], cwd=WORK, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130, ended.stderr
    ledger = (machines.SHARED / "chip-runs" / "ledger").rglob("*")
    text = "".join(path.read_text() for path in ledger if path.is_file())
    assert '"killed"' in text, text[-2000:]
    return rows


def probe_listeners(
    all_machines: list[machines.Machine], head: machines.Machine
) -> list[dict[str, Any]]:
    """Return who listens where, and how each answers with and without the token.

    They are asked from the client machine; what listens on loopback, from its own.
    """
    token = head.run("cat", "/root/.ray/auth_token").strip()
    shown = {"without": None, "wrong": "0" * 64, "with": token}
    rows = []
    for machine in all_machines:
        there = [
            each for each in ports.parse_listeners(machine.run("ss", "-ltnpH")) if each.port != 22
        ]
        results = {
            (how, inside): ports.probe_ports(
                "127.0.0.1" if inside else machine.ip,
                [each.port for each in there if each.is_loopback == inside],
                given,
                machine.enter_command if inside else (),
            )
            for how, given in shown.items()
            for inside in (False, True)
        }
        rows += [
            {"machine": "head" if machine is head else "worker",
             "address": each.address, "port": each.port, "program": each.program,
             **{how: results[how, each.is_loopback][each.port] for how in shown}}
            for each in there
        ]  # fmt: skip
    return rows


def query_head_activity(head: machines.Machine) -> str:
    """Return what `cluster idle` sees on the head, where one worker is up and no job runs."""
    look = "from orchestrator.cluster.idle import query_activity; print(query_activity())"
    results = head.run("env", "RAY_AUTH_MODE=token", str(BIN / "python"), "-c", look).strip()
    assert results == "Activity(jobs=0, machines=1, users=0)", results
    return results


def run_chip_ablate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run chip-ablate in the client's folder."""
    return run_command("chip-ablate", *arguments)


def run_command(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the virtual environment; what it says is shown where it fails."""
    done = subprocess.run(
        [BIN / program, *arguments], cwd=WORK, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-6000:], file=sys.stderr)
        raise SystemExit(f"{program} {' '.join(arguments)}: exit code {done.returncode}")
    return done


def list_ray_processes(machine: machines.Machine) -> list[str]:
    """Return the processes of Ray on a machine."""
    return [
        line[:80] for line in machine.list_processes() if "gcs_server" in line or "raylet" in line
    ]


def wait_until(holds: Any, seconds: float) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds:g} s")
        time.sleep(0.25)


class timed:  # noqa: N801  a context manager
    """Note how many seconds a step took."""

    def __init__(self, figures: dict[str, Any], name: str) -> None:
        self.figures, self.name = figures, name

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.figures[self.name] = round(time.monotonic() - self.begun, 1)
        print(f"{self.name}: {self.figures[self.name]} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["inside"]:
        main()
    else:
        why = machines.find_obstacle()
        if why is not None:
            raise SystemExit(f"test-cluster: {why}")
        inside = machines.make_namespace_command(Path(__file__), "inside")
        os.execvp(inside[0], inside)  # who ends this process ends all of it
