"""Measure wall and CPU seconds of the encoder study from empty, in this checkout and another one.

    python -m benchmarks.encoder --other ../build-82a6933
    python -m benchmarks.encoder --other ../build-82a6933 --rounds 3 --json
    python -m benchmarks.encoder --other ../build-82a6933 --set training.max_steps=2   # a try

Both run `chip-ablate run ablations/encoder.yaml` in turns, each time in a new work directory, with
this interpreter and its libraries. CPU seconds are the kernel's sum over all processes, including
Ray's daemons and workers, however they were started and whoever waited for them: each run is in a
control group of its own (cgroup v2). Creating one needs root, or a scope of the user's own:

    systemd-run --user --scope -p Delegate=yes python -m benchmarks.encoder --other …
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

HERE = Path(__file__).resolve().parent.parent
PROGRAM = "from orchestrator.cli import program; program()"
#: Seconds within which all processes of a finished run must be gone.
MAX_SECONDS = 120.0


@contextlib.contextmanager
def create_control_group() -> Iterator[Path]:
    """Create a control group below this process's own; remove it with all that is left in it.

    Raises:
        SystemExit: it cannot be created.
    """
    mounts = [words.split() for words in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"]
    own = [
        path
        for number, _, path in (
            words.split(":", 2) for words in Path("/proc/self/cgroup").read_text().splitlines()
        )
        if number == "0"
    ]
    if not roots or not own:
        raise SystemExit("no cgroup v2 is mounted here: CPU seconds of all processes need one")
    try:
        group = Path(tempfile.mkdtemp(prefix="encoder-", dir=roots[0] / own[0].lstrip("/")))
    except OSError as error:
        raise SystemExit(
            f"no control group can be made ({error}): run as root, or by "
            "systemd-run --user --scope -p Delegate=yes"
        ) from None
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        wait_until_empty(group)
        group.rmdir()


def wait_until_empty(group: Path) -> bool:
    """Wait for the last process of a control group to end; return whether it did."""
    until = time.monotonic() + MAX_SECONDS
    while read_group_stat(group, "cgroup.events")["populated"] and time.monotonic() < until:
        time.sleep(0.1)
    return not read_group_stat(group, "cgroup.events")["populated"]


def read_group_stat(group: Path, file: str) -> dict[str, int]:
    """Return a control group's figures."""
    words = [words.split() for words in (group / file).read_text().splitlines()]
    return {name: int(value) for name, value, *_ in words}


def time_program(checkout: Path, words: Sequence[str]) -> dict[str, float]:
    """Run a checkout's program and return the seconds that it took.

    Raises:
        SystemExit: it failed, or left processes behind.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder, create_control_group() as group:

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        command = [sys.executable, "-c", PROGRAM, "run", *words, "--workdir", f"{folder}/runs"]
        began = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=checkout,
            env=environment,
            preexec_fn=join,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wall = time.perf_counter() - began
        if done.returncode != 0:
            raise SystemExit(f"{checkout} failed ({done.returncode}):\n{done.stdout[-2000:]}")
        if not wait_until_empty(group):
            left = (group / "cgroup.procs").read_text().split()
            raise SystemExit(f"{checkout} left processes behind: {', '.join(left)}")
        return {"wall_s": wall, "cpu_s": read_group_stat(group, "cpu.stat")["usage_usec"] / 1e6}


def find_commit(checkout: Path) -> str:
    """Return a checkout's commit."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True
    )
    return said.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--other", type=Path, required=True, help="the other checkout")
    parser.add_argument("--study", default="ablations/encoder.yaml", help="of each checkout")
    parser.add_argument("--set", action="append", default=[], help="as of `chip-ablate run`")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    machine = describe_machine()
    checkouts = {"here": HERE, "other": options.other.resolve()}
    words = [options.study, *(word for each in options.set for word in ("--set", each))]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for number in range(options.rounds):
        order = list(checkouts.items())  # neither is always the first
        for name, checkout in order if number % 2 == 0 else order[::-1]:
            runs[name].append(time_program(checkout, words))
    figures: dict[str, Any] = {
        name: {
            "commit": find_commit(checkouts[name]),
            **{
                kind: summarize_repeats([run[kind] for run in found])
                for kind in ("cpu_s", "wall_s")
            },
        }
        for name, found in runs.items()
    }
    for kind in ("cpu_s", "wall_s"):
        pairs = zip(runs["here"], runs["other"], strict=True)
        ratios = [here[kind] / other[kind] for here, other in pairs]
        figures[f"{kind}, here over other"] = summarize_repeats(ratios)
    if options.json:
        given = {"benchmark": "encoder", "study": words, "machine": machine, "figures": figures}
        print(json.dumps(given))
        return
    print(format_machine(machine))
    for name in checkouts:
        found = figures[name]
        cpu, wall = found["cpu_s"]["median"], found["wall_s"]["median"]
        print(f"{name} ({found['commit']}): {cpu:.1f} CPU s, {wall:.1f} s")
    for kind in ("cpu_s", "wall_s"):
        print(f"{kind}, here over other: {figures[f'{kind}, here over other']['median']:.3f}")


if __name__ == "__main__":
    main()
