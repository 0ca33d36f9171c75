"""Measure what `run`, `plan` and `status` of a finished study cost, with nothing left to run.

    python -m benchmarks.rerun
    python -m benchmarks.rerun --workdir chip-runs     # of the encoder study, finished there
    python -m benchmarks.rerun --json

Without a work directory the encoder study is made first, with trainings of two steps: what a rerun
reads has the same form. Wall and CPU seconds of each command's whole process, user and system,
including its children; interleaved, a new process each repeat. A rerun must not write a file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

COMMANDS = ("run", "plan", "status")
PROGRAM = "from orchestrator.cli import program; program()"
SHORT = ("--set", "training.max_steps=2")


def time_command(words: Sequence[str]) -> dict[str, float]:
    """Run a command and return the seconds it took.

    Raises:
        CalledProcessError: it failed.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", PROGRAM, *words], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


def list_write_times(workdir: Path) -> dict[str, int]:
    """Return when each file of a work directory was written; locks, which each run has, aside."""
    return {
        str(file): file.stat().st_mtime_ns
        for file in workdir.rglob("*")
        if file.is_file() and file.parent.name != "ledger"
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", default="encoder")
    parser.add_argument("--workdir", type=Path, help="where it is finished as it is")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        workdir = options.workdir or Path(folder) / "runs"
        given = [options.study, "--workdir", str(workdir)]
        given += [] if options.workdir is not None else SHORT
        time_command(["run", *given, "--executor", "inline"])
        before = list_write_times(workdir)
        found: dict[str, list[dict[str, float]]] = {command: [] for command in COMMANDS}
        for _ in range(options.repeats):
            for command in COMMANDS:
                found[command].append(time_command([command, *given]))
        if list_write_times(workdir) != before:
            raise SystemExit("a rerun of a finished study has written something")
    figures: dict[str, Any] = {
        command: {
            kind: summarize_repeats([repeat[kind] for repeat in repeats])
            for kind in ("cpu_s", "wall_s")
        }
        for command, repeats in found.items()
    }
    if options.json:
        print(json.dumps({"benchmark": "rerun", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    for command, figure in figures.items():
        cpu, wall = figure["cpu_s"], figure["wall_s"]
        print(f"{command}: {cpu['median']:.2f} CPU s, {wall['median']:.2f} s")


if __name__ == "__main__":
    main()
