"""Measure whether two seeds of a small model should share one process: they should not.

    python -m benchmarks.seeds
    python -m benchmarks.seeds --json

Two trials of the embedded world that differ in their seed, `--steps` steps each, one thread of
torch a trial: in two processes at once, as Ray runs them; in two threads of one process, which
share its imports and its interpreter's lock; one after the other in one process. Wall and CPU
seconds of both trials, from the start of the first process to the end of the last; the losses are
compared to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

SEEDS = (0, 1)
WAYS = ("two processes", "two threads", "one after the other")


def train(seed: int, steps: int, folder: Path) -> None:
    """Train one trial."""
    from chip_core.config.trial import TrialConfig
    from chip_core.trial import run_trial

    config = TrialConfig.model_validate(
        {
            "model": "shapes",
            "seed": seed,
            "training": {"batch_size": 16, "max_steps": steps},
            "engine": {"micro_batch": 16, "threads": 1},
        }
    )
    run_trial(config, folder=folder / str(seed))


def run(way: str, steps: int, folder: Path) -> dict[str, float]:
    """Return wall and CPU seconds of both trials."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    each = [[seed] for seed in SEEDS] if way == "two processes" else [list(SEEDS)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.seeds", "--child", way, str(folder), str(steps)]
            + [str(seed) for seed in seeds]
        )
        for seeds in each
    ]
    for process in started:
        assert process.wait() == 0
    wall = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall_s": wall, "cpu_s": now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime}


def run_child(way: str, folder: Path, steps: int, seeds: Sequence[int]) -> None:
    """Run as one of the processes."""
    if way != "two threads":
        for seed in seeds:
            train(seed, steps, folder)
        return
    threads = [threading.Thread(target=train, args=(seed, steps, folder)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def read_losses(folder: Path) -> list[float]:
    """Return every loss of both trials."""
    from chip_core.utils.files import read_records

    return [
        record["figures"]["loss"]
        for seed in SEEDS
        for record in read_records(folder / str(seed) / "curves.jsonl")
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--child"]:
        way, folder, steps, *seeds = given[1:]
        run_child(way, Path(folder), int(steps), [int(seed) for seed in seeds])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(given)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    machine = describe_machine()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    curves: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        for way, repeats in found.items():  # interleaved
            with tempfile.TemporaryDirectory() as folder:
                repeats.append(run(way, options.steps, Path(folder)))
                curves[way] = read_losses(Path(folder))
    figures: dict[str, Any] = {
        way: {
            **{
                name: summarize_repeats([each[name] for each in repeats])
                for name in ("wall_s", "cpu_s")
            },
            "same_losses": curves[way] == curves[WAYS[0]],
        }
        for way, repeats in found.items()
    }
    if options.json:
        print(json.dumps({"benchmark": "seeds", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    for way, figure in figures.items():
        same = "" if figure["same_losses"] else "; other losses"
        wall, cpu = figure["wall_s"]["median"], figure["cpu_s"]["median"]
        print(f"{way}: {wall:.1f} s, {cpu:.1f} CPU s{same}")


if __name__ == "__main__":
    main()
