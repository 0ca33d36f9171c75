"""Measure what a trial costs before its first step: CPU and wall seconds, inline and on Ray.

    python -m benchmarks.startup
    python -m benchmarks.startup --json

Trials of one step on the embedded world, one after another. CPU seconds are those of all processes
of the run, from a trial's start to its first step, by process. On Ray the first trial of a run also
starts its slot (the process `ImplicitFunc`), in which the next ones run, and is given separately;
so is a first trial inline, which imports everything. The parts of a trial's time are what it logs
as `timing/*`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

EVERY = 0.25  # seconds between two samples of the processes
_RAYS = re.compile(r"ray::(\w+)")  # a Ray process's title: its kind, and its current call


class Meter:
    """CPU seconds of this process and its descendants, by kind, including those that have ended."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], tuple[str, float]] = {}
        self._own = 0.0  # the cost of sampling
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def read(self) -> dict[str, float]:
        """Return CPU seconds until now, by kind of process."""
        with self._lock:
            began = time.thread_time()
            me = psutil.Process()
            for process in [me, *me.children(recursive=True)]:
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        key = (process.pid, process.create_time())
                        kind = (
                            "driver"
                            if process.pid == me.pid
                            else _find_process_kind(process.cmdline())
                        )
                except psutil.Error:
                    continue
                if not kind:  # it has ended
                    kind = self._seen.get(key, ("other", 0.0))[0]
                self._seen[key] = (kind, times.user + times.system)
            self._own += time.thread_time() - began
            sums: dict[str, float] = {"driver": -self._own}
            for kind, seconds in self._seen.values():
                sums[kind] = sums.get(kind, 0.0) + seconds
            return sums

    def stop(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self.read()


def _find_process_kind(command: Sequence[str]) -> str:
    title = " ".join(command)
    found = _RAYS.search(title)
    if found:
        return found.group(1)
    scripts = [Path(word).name for word in command[1:4] if word.endswith(".py")]
    return next(iter(scripts), Path(command[0]).name if command else "")


def run_trials(executor: str, count: int, work: Path) -> list[dict[str, Any]]:
    """Run trials one after another in this process; return each one's start."""
    from chip_core.config.trial import TrialConfig
    from chip_core.results import read_result
    from orchestrator.executors.base import Executor, Job, JobEvent, JobProgressed, JobStarted

    config = TrialConfig.model_validate(
        {
            "model": "shapes",
            "training": {"batch_size": 16, "max_steps": 1},
            "engine": {"micro_batch": 16, "threads": 1},
        }
    )
    jobs = [
        Job(id=f"t{number}", name=f"t{number}", config=config, folder=work / f"t{number}")
        for number in range(count)
    ]
    if executor == "inline":
        from orchestrator.executors.inline import InlineExecutor

        runner: Executor = InlineExecutor()
    else:
        from orchestrator.executors.ray.tuner import RayTuneExecutor

        runner = RayTuneExecutor(workdir=work, max_concurrent=1)
    meter = Meter()
    begun: dict[str, tuple[float, dict[str, float]]] = {}
    found: dict[str, dict[str, Any]] = {}

    def listen(event: JobEvent) -> None:
        if isinstance(event, JobStarted):
            begun[event.job.id] = (time.perf_counter(), meter.read())
        if isinstance(event, JobProgressed) and event.progress.phase == "train":
            since, before = begun[event.job.id]
            wall, now = time.perf_counter() - since, meter.read()
            spent = {kind: now[kind] - before.get(kind, 0.0) for kind in now}
            found[event.job.id] = {
                "wall_s": wall,
                "cpu_s": sum(spent.values()),
                "by_process": {kind: s for kind, s in spent.items() if s >= 0.05},
            }

    runner.run(jobs, listen)
    meter.stop()
    for job in jobs:
        result = read_result(job.folder)
        assert result is not None, f"{job.folder} holds no result"
        found[job.id]["timing"] = result.seconds
    return [found[job.id] for job in jobs]


def summarize_starts(starts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over trials."""

    def median(part: str) -> dict[str, float]:
        names = {name for start in starts for name in start[part]}
        values = {name: [start[part].get(name, 0.0) for start in starts] for name in names}
        medians = {name: summarize_repeats(value)["median"] for name, value in values.items()}
        return dict(sorted(medians.items(), key=lambda item: -item[1]))

    return {
        "cpu_s": summarize_repeats([start["cpu_s"] for start in starts]),
        "wall_s": summarize_repeats([start["wall_s"] for start in starts]),
        "cpu_s_by_process": median("by_process"),
        "timing_s": median("timing"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each executor")
    parser.add_argument("--trials", type=int, default=3, help="trials of a run")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--one", choices=["inline", "ray"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_trials(options.one, options.trials, Path(folder))))
        return
    machine = describe_machine()
    runs: dict[str, list[list[dict[str, Any]]]] = {"inline": [], "ray": []}
    for _ in range(options.repeats):
        for executor, found in runs.items():  # interleaved
            command = [sys.executable, "-m", "benchmarks.startup", "--one", executor]
            command += ["--trials", str(options.trials)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    figures = {
        executor: {
            "first": summarize_starts([run[0] for run in found]),
            **(
                {"next": summarize_starts([s for run in found for s in run[1:]])}
                if len(found[0]) > 1
                else {}
            ),
        }
        for executor, found in runs.items()
    }
    if options.json:
        print(json.dumps({"benchmark": "startup", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    for executor, parts in figures.items():
        for which, part in parts.items():
            print(
                f"{executor}, {which} trial of a run: {part['cpu_s']['median']:.1f} CPU s, "
                f"{part['wall_s']['median']:.1f} s to its first step"
            )
            for what in ("cpu_s_by_process", "timing_s"):
                print(f"  {what}: " + ", ".join(f"{k} {v:.1f}" for k, v in part[what].items()))


if __name__ == "__main__":
    main()
