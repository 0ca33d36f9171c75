"""Compare the estimated cost of a study with its actual cost, in CPU seconds.

    python -m benchmarks.estimate                 # the encoder study, three times
    python -m benchmarks.estimate --executor ray
    python -m benchmarks.estimate --small         # two arms, one seed: a look, not the benchmark
    python -m benchmarks.estimate --json

Each repeat has a new work directory. `chip-ablate plan --calibrate` estimates, `chip-ablate run`
runs. The actual cost is the CPU seconds of all processes of the run, including the driver's,
MLflow's, the report's and Ray's, which the estimate leaves out: it covers the trials and the
reference passes. Two figures are given: all processes, and what the trials' own ones recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats
from benchmarks.startup import Meter

SMALL = """
study: small
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [shapes]
primary: {metric: shapes/chair_i, goal: minimize}
"""
PROGRAM = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def measure(study: str, executor: str, workdir: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Return the estimated and the actual cost, in seconds."""
    given = [study, "--executor", executor, "--workdir", str(workdir), "--json", *extra]
    calibration, planned = _time_command([*PROGRAM, "plan", *given, "--calibrate"])
    cost = planned["cost"]
    assert cost["known"], f"not all is known: {cost['unknown']}, {cost['not_calibrated']}"
    taken, ran = _time_command([*PROGRAM, "run", *given])
    assert not ran["failed"], f"trials failed: {ran['failed']}"
    estimated = 3600 * cost["cpu_hours"]
    return {
        "calibration_cpu_s": calibration["cpu_s"],
        "calibration_wall_s": calibration["wall_s"],
        "estimated_cpu_s": estimated,
        "taken_cpu_s": taken["cpu_s"],
        "trials_cpu_s": _sum_recorded_cpu(workdir),
        "estimated_over_taken": estimated / taken["cpu_s"],
        "estimated_wall_s": cost["wall_seconds"],
        "taken_wall_s": taken["wall_s"],
        "by_process": taken["by_process"],
    }


def _time_command(command: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command that prints JSON; return the cost of all its processes, and its output."""
    meter = Meter()
    before = meter.read()  # of this process, and of others that it started
    began = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    wall = time.perf_counter() - began
    found = {kind: seconds - before.get(kind, 0.0) for kind, seconds in meter.read().items()}
    meter.stop()
    kinds = {kind: round(seconds, 1) for kind, seconds in found.items() if seconds >= 0.05}
    taken = {"cpu_s": sum(found.values()), "wall_s": wall, "by_process": kinds}
    return taken, json.loads(done.stdout.splitlines()[-1])


def _sum_recorded_cpu(workdir: Path) -> float:
    """Return the CPU seconds that the trials recorded, without reference passes."""
    from orchestrator.state.ledger import Ledger

    return sum(sum(record.cpu.values()) for _, record in Ledger(workdir).items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--study", default="encoder")
    parser.add_argument("--executor", choices=["inline", "ray"], default="inline")
    parser.add_argument("--small", action="store_true", help="a study of two trials")
    parser.add_argument("--set", action="append", default=[], help="as chip-ablate's")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    machine = describe_machine()
    extra = [word for change in options.set for word in ("--set", change)]
    repeats = []
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            study = options.study
            if options.small:
                file = Path(folder) / "small.yaml"
                file.write_text(SMALL, encoding="utf-8")
                study = str(file)
            repeats.append(measure(study, options.executor, Path(folder) / "w", extra))
        if not options.json:
            print(f"repeat {number + 1}: {_format_figures(repeats[-1])}", flush=True)
    ratio = statistics.median(each["estimated_over_taken"] for each in repeats)
    figures = {
        "study": "small" if options.small else options.study,
        "executor": options.executor,
        "estimated_over_taken": ratio,
        "within_25_percent": abs(ratio - 1) <= 0.25,
        **{
            name: summarize_repeats([each[name] for each in repeats])
            for name in repeats[0]
            if name != "by_process"
        },
        "repeats": repeats,
    }
    if options.json:
        print(json.dumps({"benchmark": "estimate", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    within = "within" if figures["within_25_percent"] else "NOT within"
    print(f"median: estimated {ratio:.0%} of what was taken: {within} 25 %")


def _format_figures(found: dict[str, Any]) -> str:
    return (
        f"estimated {found['estimated_cpu_s']:.0f} CPU s, taken {found['taken_cpu_s']:.0f} "
        f"({found['estimated_over_taken']:.0%}), of which the trials noted "
        f"{found['trials_cpu_s']:.0f}; wall {found['estimated_wall_s']:.0f} s estimated, "
        f"{found['taken_wall_s']:.0f} s taken; the calibration {found['calibration_cpu_s']:.0f} "
        f"CPU s, {found['calibration_wall_s']:.0f} s"
    )


if __name__ == "__main__":
    main()
