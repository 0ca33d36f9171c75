"""Measure the cost of a grid besides its policies' steps: 8 arms × 1 seed, embedded world.

    python -m benchmarks.study
    python -m benchmarks.study --steps 60 --json     # shorter trainings

Three ways to run the same study (frozen and trained vision encoder × dpo, cmdpo, hdpo, chip), one
trial after the other, one thread of torch each, in interleaved rounds:

bare      no Ray, no MLflow: one process makes the reference pass, trains and scores each trial
shared    `chip-ablate run` on Ray with the reference passes made once before the trials
in step   the same with `reference_cache: off`: each step of each trial computes its reference

Seconds are CPU seconds of all processes of a way. Work counts from a job's first piece of work
(a batch of a reference pass, a step, an answer) to its end; what all processes do before that in a
job is its start-up: of a trial, or of a reference pass, which is a job too. Bare work is the
reference pass, the steps of the policies with their checkpoints, and the scores, without Ray.
The cost of a grid beyond that is all its cost except start-up: the work in the jobs' own processes
and a rest, given by process, which includes Ray's start and end, and the report.
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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import describe_machine, format_machine, summarize_repeats
from benchmarks.startup import Meter
from orchestrator.executors.base import (
    Executor,
    Job,
    JobAnswered,
    JobEvent,
    JobFinished,
    JobProgressed,
    JobSource,
    JobStarted,
    RetryPolicy,
)

WAYS = ("bare", "shared", "in step")
#: Phases of a job before the work on its figures.
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


#: The processes of trainings, answers and reference passes: on Ray, and without it.
WORKER = {"ImplicitFunc", "RayTrainWorker", "bare"}
#: The process that scores answers on Ray, beside the next trial.
SCORER = "Scorer"

#: The phases of a job once its work has begun.
AT_WORK = ("before scores", "scores")

#: Returns the CPU seconds of each kind of process so far.
Clock = Callable[[], dict[str, float]]


class RecordingExecutor:
    """An executor that records its jobs' CPU seconds, by job, phase and process."""

    def __init__(self, executor: Executor, clock: Clock) -> None:
        self._executor, self._clock = executor, clock
        self._marks: dict[str, dict[str, dict[str, float]]] = {}
        self.jobs: list[dict[str, Any]] = []

    def open(self, jobs: Sequence[Job]) -> Any:
        """As the executor's."""
        return self._executor.open(jobs)

    def count_slots(self, job: Job) -> int:
        """Return 1: a pass in parts has a start-up each."""
        return 1

    def reserve_gpus(self, gpus: int) -> AbstractContextManager[Sequence[str]]:
        """As the executor's."""
        return self._executor.reserve_gpus(gpus)

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        more: JobSource | None = None,
    ) -> None:
        """As the executor's."""

        def listener(event: JobEvent) -> None:
            self._note(event)
            on_event(event)

        self._executor.run(jobs, listener, retry, more)

    def _note(self, event: JobEvent) -> None:
        marks = self._marks.setdefault(event.job.id, {})
        match event:
            case JobStarted():
                marks["started"] = self._clock()
            case JobProgressed(progress=progress) if progress.phase not in BEFORE_WORK:
                if "work" not in marks:
                    marks["work"] = self._clock()
            case JobAnswered() | JobFinished():
                self.jobs.append(compute_job_costs(event.job, marks, self._clock()))


def compute_job_costs(
    job: Job, marks: dict[str, dict[str, float]], end: dict[str, float]
) -> dict[str, Any]:
    """Return the cost of a job until its end: only its own processes' if another runs beside it."""
    kind = "pass" if job.shard is not None else "scoring" if job.is_scoring else "trial"
    work = marks.get("work", end)

    def own(spent: dict[str, float]) -> dict[str, float]:
        scored = {SCORER, "bare"}
        return {
            process: seconds
            for process, seconds in spent.items()
            if (process in scored if kind == "scoring" else process != SCORER)
        }

    return {
        "job": job.name,
        "kind": kind,
        "start": own(subtract_readings(marks["started"], work)),
        "scores" if kind == "scoring" else "before scores": own(subtract_readings(work, end)),
    }


def subtract_readings(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return CPU seconds of each kind of process between two readings."""
    return {kind: seconds - before.get(kind, 0.0) for kind, seconds in after.items()}


def run_once(way: str, steps: int | None, work: Path) -> dict[str, Any]:
    """Run the study one way in this process; return its CPU and wall seconds."""
    from rich.console import Console

    from orchestrator.commands.common.options import load_plan
    from orchestrator.executors.inline import InlineExecutor
    from orchestrator.executors.ray.tuner import RayTuneExecutor
    from orchestrator.run import run_study
    from orchestrator.tracking.projection import MlflowProjection
    from orchestrator.tracking.tracker import Tracker

    file = work / "grid.yaml"
    file.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    overrides: list[tuple[str, Any]] = [("engine.threads", 1)]
    if steps is not None:
        overrides.append(("training.max_steps", steps))
    if way == "in step":
        overrides.append(("reference_cache", "off"))
    plan = load_plan(
        str(file),
        workdir=work,
        benchmark_data=None,
        judge_replies=None,
        recipe=None,
        seeds=None,
        overrides=overrides,
    )
    meter = Meter()
    executor: Executor
    if way == "bare":

        def clock() -> dict[str, float]:
            return {"bare": time.process_time()}

        executor = RecordingExecutor(InlineExecutor(), clock)
    else:
        clock = meter.read
        executor = RecordingExecutor(RayTuneExecutor(workdir=work, max_concurrent=1), clock)
    began, before = time.perf_counter(), clock()
    outcome = run_study(
        plan,
        workdir=work,
        executor=lambda: executor,
        tracker=Tracker(MlflowProjection(work)),
        console=Console(file=io.StringIO()),
    )
    spent, wall = subtract_readings(before, clock()), time.perf_counter() - began
    meter.stop()
    assert not outcome.failed, outcome.failed
    return {"spent": spent, "wall_s": wall, "jobs": executor.jobs}


def sum_part_seconds(run: dict[str, Any], part: str, kind: str) -> float:
    """Return the CPU seconds of a part of a run's jobs of one kind, all processes together."""
    return sum(sum(job.get(part, {}).values()) for job in run["jobs"] if job["kind"] == kind)


def sum_seconds(run: dict[str, Any]) -> float:
    """Return the CPU seconds of a run's processes."""
    return sum(run["spent"].values())


def sum_work_seconds(run: dict[str, Any]) -> float:
    """Return the CPU seconds of work in the jobs' own processes, without start-up."""
    return sum(
        job.get(part, {}).get(kind, 0.0)
        for job in run["jobs"]
        for part in AT_WORK
        for kind in (*WORKER, SCORER)
    )


def sum_start_seconds(run: dict[str, Any]) -> float:
    """Return the CPU seconds of the jobs' start-up, including reference passes."""
    return sum(sum_part_seconds(run, "start", kind) for kind in ("trial", "scoring", "pass"))


def list_rest_seconds(run: dict[str, Any]) -> dict[str, float]:
    """Return the cost that is neither work nor start-up, by process."""
    rest = dict(run["spent"])
    for job in run["jobs"]:
        for part, spent in ((part, job.get(part, {})) for part in ("start", *AT_WORK)):
            for kind, used in spent.items():
                if part == "start" or kind in (*WORKER, SCORER):
                    rest[kind] = rest.get(kind, 0.0) - used
    return dict(sorted(rest.items(), key=lambda item: -item[1]))


def compute_figures(rounds: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Compute the figures of rounds, from `once` by way."""

    def of(way: str, what: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        return summarize_repeats([what(each[way]) for each in rounds])

    def a_start(kind: str) -> Callable[[dict[str, Any]], float]:
        return lambda run: (
            sum_part_seconds(run, "start", kind)
            / max(1, sum(job["kind"] == kind for job in run["jobs"]))
        )

    def rest(way: str) -> dict[str, float]:
        found = [list_rest_seconds(each[way]) for each in rounds]
        kinds = {kind for each in found for kind in each}
        medians = {
            kind: summarize_repeats([each.get(kind, 0.0) for each in found])["median"]
            for kind in kinds
        }
        return dict(sorted(medians.items(), key=lambda item: -item[1]))

    def ratio(way: str) -> dict[str, float]:
        overheads = [
            (sum_seconds(each[way]) - sum_start_seconds(each[way])) / sum_work_seconds(each["bare"])
            for each in rounds
        ]
        return summarize_repeats(overheads)

    return {
        "bare work, cpu_s": {
            "reference pass": of(
                "bare", lambda run: sum_part_seconds(run, "before scores", "pass")
            ),
            "policy steps": of("bare", lambda run: sum_part_seconds(run, "before scores", "trial")),
            "scores": of("bare", lambda run: sum_part_seconds(run, "scores", "scoring")),
        },
        **{
            way: {
                "cpu_s": of(way, sum_seconds),
                "wall_s": of(way, lambda run: run["wall_s"]),
                "work in the jobs' own processes, cpu_s": of(way, sum_work_seconds),
                "start-up of a trial, cpu_s": of(way, a_start("trial")),
                "start-up of a scoring, cpu_s": of(way, a_start("scoring")),
                "start-up of a pass, cpu_s": of(way, a_start("pass")),
                "start-up of all jobs, cpu_s": of(way, sum_start_seconds),
                "over bare work, start-up taken off": ratio(way),
                "the rest by process, cpu_s": rest(way),
            }
            for way in WAYS
        },
    }


@contextlib.contextmanager
def _open_folder() -> Iterator[Path]:
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
        with _open_folder() as folder:
            print(json.dumps(run_once(options.one, options.steps, folder)))
        return
    machine = describe_machine()
    rounds: list[dict[str, dict[str, Any]]] = []
    for _ in range(options.rounds):
        found = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.study", "--one", way]
            command += ["--steps", str(options.steps)] if options.steps is not None else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(found)
    came = compute_figures(rounds)
    if options.json:
        report = {"benchmark": "study", "machine": machine, "steps": options.steps, "figures": came}
        print(json.dumps(report))
        return
    print(format_machine(machine))
    for name, part in came.items():
        print(name)
        for what, figure in part.items():
            if "median" in figure:
                print(f"  {what}: {figure['median']:.3f}")
            else:
                shown = (f"{kind} {used:.1f}" for kind, used in figure.items() if used >= 0.05)
                print(f"  {what}: " + ", ".join(shown))


if __name__ == "__main__":
    main()
