"""What a grid costs beside the steps of its policies: 8 arms × 1 seed on the embedded world.

    python -m benchmarks.study
    python -m benchmarks.study --steps 60 --json     # shorter trainings

Three ways of the same study (frozen and trained vision encoder × dpo, cmdpo, hdpo, chip), trial
after trial, one thread of torch each, in interleaved rounds:

bare      no Ray, no MLflow: one process makes the reference pass, trains and scores each trial
shared    `chip-ablate run` on Ray with the reference passes made once before the trials
in step   the same with `reference_cache: off`: each step of each trial computes its reference

Seconds are CPU seconds of all processes of a way. Work counts from a job's first piece of work
(a batch of a reference pass, a step, an answer) to its end; what lies before that in a job is its
start-up. A grid's overhead is what is left when start-up is taken off: over the bare work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe, line, spread
from benchmarks.startup import Meter
from orchestrator.executors.base import Again, Event, Executor, Finished, Job, Progressed, Started

WAYS = ("bare", "shared", "in step")
#: Phases in which a job does nothing yet that its figures come from.
BEFORE_WORK = {"start", "check data"}

STUDY = {
    "study": "grid",
    "recipe": "shapes",
    "factors": {
        "vision_encoder": ["frozen", "trained"],
        "objective": ["dpo", "cmdpo", "hdpo", "chip"],
    },
    "seeds": [0],
    "baseline": {"vision_encoder": "frozen", "objective": "dpo"},
    "benchmarks": {"report": ["shapes"]},
}


class Watched:
    """An executor whose jobs' CPU seconds are kept, by job and what it did."""

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self._executor, self._clock = executor, clock
        self._marks: dict[str, dict[str, float]] = {}
        self.jobs: list[dict[str, Any]] = []

    def opened(self, jobs: Sequence[Job]) -> Any:
        """As the executor's."""
        return self._executor.opened(jobs)

    def slots(self, job: Job) -> int:
        """Return 1: a pass in parts has a start-up each."""
        return 1

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None],
        again: Again | None = None,
    ) -> None:
        """As the executor's."""

        def listener(event: Event) -> None:
            self._note(event)
            on_event(event)

        self._executor.run(jobs, listener, again)

    def _note(self, event: Event) -> None:
        marks = self._marks.setdefault(event.job.id, {})
        match event:
            case Started():
                marks["started"] = self._clock()
            case Progressed(progress=progress) if progress.phase not in BEFORE_WORK:
                marks.setdefault("work", self._clock())
                if progress.phase.startswith("score"):
                    marks.setdefault("score", self._clock())
            case Finished():
                end = self._clock()
                kind = "pass" if event.job.part is not None else "trial"
                score = marks.get("score", end)
                self.jobs.append(
                    {
                        "job": event.job.name,
                        "kind": kind,
                        "start_s": marks["work"] - marks["started"],
                        "before_scores_s": score - marks["work"],
                        "scores_s": end - score,
                    }
                )


def once(way: str, steps: int | None, work: Path) -> dict[str, Any]:
    """Run the study one way in this process; return its CPU and wall seconds."""
    from rich.console import Console

    from orchestrator.commands.options import planned
    from orchestrator.executors.inline import InlineExecutor
    from orchestrator.executors.ray_tune import RayTuneExecutor
    from orchestrator.run import run_study
    from orchestrator.tracking.mlflow import MlflowTracker

    file = work / "grid.yaml"
    file.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    overrides: list[tuple[str, Any]] = [("engine.threads", 1)]
    if steps is not None:
        overrides.append(("training.max_steps", steps))
    if way == "in step":
        overrides.append(("reference_cache", "off"))
    plan = planned(
        str(file),
        workdir=work,
        benchmark_data=None,
        judge_replies=None,
        recipe=None,
        seeds=None,
        overrides=overrides,
    )
    meter = Meter()

    def used() -> float:
        return sum(meter.read().values())

    executor: Executor
    if way == "bare":
        executor = Watched(InlineExecutor(), time.process_time)
    else:
        executor = Watched(RayTuneExecutor(workdir=work, max_concurrent=1), used)
    began, before = time.perf_counter(), used()
    outcome = run_study(
        plan,
        workdir=work,
        executor=lambda: executor,
        tracker=MlflowTracker(work, None),
        console=Console(file=io.StringIO()),
    )
    total, wall = used() - before, time.perf_counter() - began
    meter.stop()
    assert not outcome.failed, outcome.failed
    return {"cpu_s": total, "wall_s": wall, "jobs": executor.jobs}


def figures(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return what rounds came to, from `once` by way."""

    def of(way: str, what: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        return spread([what(each[way]) for each in rounds])

    def parts(run: dict[str, Any], kind: str, *names: str) -> float:
        return sum(sum(job[name] for name in names) for job in run["jobs"] if job["kind"] == kind)

    def starts(run: dict[str, Any]) -> float:
        return sum(job["start_s"] for job in run["jobs"])

    def overhead(each: dict[str, dict[str, Any]]) -> float:
        work = sum(
            parts(each["bare"], kind, "before_scores_s", "scores_s") for kind in ("pass", "trial")
        )
        return (each["shared"]["cpu_s"] - starts(each["shared"])) / work

    return {
        "bare work": {
            "reference pass": of("bare", lambda run: parts(run, "pass", "before_scores_s")),
            "policy steps": of("bare", lambda run: parts(run, "trial", "before_scores_s")),
            "scores": of("bare", lambda run: parts(run, "trial", "scores_s")),
        },
        "shared over bare work, start-up taken off": spread([overhead(each) for each in rounds]),
        **{
            way: {
                "cpu_s": of(way, lambda run: run["cpu_s"]),
                "wall_s": of(way, lambda run: run["wall_s"]),
                "start-up of a trial, cpu_s": of(
                    way,
                    lambda run: (
                        parts(run, "trial", "start_s")
                        / sum(job["kind"] == "trial" for job in run["jobs"])
                    ),
                ),
            }
            for way in WAYS
        },
    }


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of each training; the recipe's by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    if options.one:
        with _folder() as folder:
            print(json.dumps(once(options.one, options.steps, folder)))
        return
    machine = describe()
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(options.rounds):
        found = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.study", "--one", way]
            command += ["--steps", str(options.steps)] if options.steps is not None else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(found)
    came = figures(rounds)
    if options.json:
        report = {"benchmark": "study", "machine": machine, "steps": options.steps, "figures": came}
        print(json.dumps(report))
        return
    print(line(machine))
    for name, part in came.items():
        if "median" in part:
            print(f"{name}: {part['median']:.3f}")
        else:
            print(f"{name}: " + ", ".join(f"{k} {v['median']:.1f}" for k, v in part.items()))


if __name__ == "__main__":
    main()
