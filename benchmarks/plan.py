"""Measure how long planning takes for a study of 10,000 cells, each a config and a fingerprint.

    python -m benchmarks.plan
    python -m benchmarks.plan --json

There are two studies with the same number of cells: in one every cell is a trial, in the other half
of them differ in what has no effect under DPO and are one trial. Wall and CPU seconds of loading
the file and of making the plan, without imports; each repeat is a new process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

STUDY = """
study: large
recipe: shapes
factors:
  objective: [{objectives}]
  vision_encoder: [frozen, trained]
  optimizer.lr: [{rates}]
  objective.weights.segment: [{segment}]
  objective.weights.token: [{token}]
  training.max_steps: [{steps}]
benchmarks: {{report: [shapes]}}
primary: {{metric: shapes/chair_i, goal: minimize}}
"""


def make_study(*, collapse: bool) -> str:
    """Return a study of 2 × 2 × 10 × 10 × 5 × 5 = 10,000 cells."""
    return STUDY.format(
        objectives="dpo, chip" if collapse else "hdpo, chip",
        rates=", ".join(f"{number}.0e-5" for number in range(1, 11)),
        segment=", ".join(f"{number}.0" for number in range(1, 11)),
        token=", ".join(f"0.{number}" for number in range(1, 6)),
        steps=", ".join(str(10 * number) for number in range(1, 6)),
    )


def measure(file: Path) -> dict[str, float]:
    """Plan a study file in this process."""
    from orchestrator.plan.plan import make_plan
    from orchestrator.study.load import load_study

    wall, cpu = time.perf_counter(), time.process_time()
    plan = make_plan(load_study(file))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "arms": len(plan.arms),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # one repeat's process
    options = parser.parse_args(arguments)
    if options.file is not None:
        print(json.dumps(measure(options.file)))
        return
    machine = describe_machine()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, collapse in (("every cell a trial", False), ("half collapse", True)):
            files[name] = Path(folder) / f"{name.replace(' ', '_')}.yaml"
            files[name].write_text(make_study(collapse=collapse), encoding="utf-8")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in files}
        for _ in range(options.repeats):
            for name, file in files.items():  # interleaved
                command = [sys.executable, "-m", "benchmarks.plan", "--file", str(file)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout))
    for name, repeats in found.items():
        figures[name] = {
            "cells": 10_000,
            "arms": int(repeats[0]["arms"]),
            "wall_s": summarize_repeats([repeat["wall_s"] for repeat in repeats]),
            "cpu_s": summarize_repeats([repeat["cpu_s"] for repeat in repeats]),
        }
    if options.json:
        print(json.dumps({"benchmark": "plan", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    for name, figure in figures.items():
        print(
            f"{name}: 10,000 cells, {figure['arms']} arms: "
            f"{figure['cpu_s']['median']:.2f} CPU s, {figure['wall_s']['median']:.2f} s"
        )


if __name__ == "__main__":
    main()
