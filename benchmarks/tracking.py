"""Measure how many metrics a second the tracker logs to MLflow, and single calls for comparison.

    python -m benchmarks.tracking
    python -m benchmarks.tracking --tracking-uri http://127.0.0.1:5000 --json

Eight trials of a study (four arms, two seeds) have curves of `--steps` steps with the twelve
figures of a CHiP step, which grow by a tenth at a time as in a running study; then the trials end
with a table of 50 responses. Timed: everything from the first point to the study's end. Each repeat
has a new SQLite database, unless a server is named.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, format_machine, summarize_repeats

STUDY = """
study: {name}
recipe: shapes
factors: {{objective: [dpo, chip], vision_encoder: [frozen, trained]}}
seeds: 2
benchmarks: {{report: [shapes]}}
primary: {{metric: shapes/chair_i, goal: minimize}}
"""
FIGURES = (
    "loss", "term/response", "term/segment", "term/token", "term/visual", "reward/chosen",
    "reward/rejected", "reward/margin", "reward/accuracy", "lr", "grad_norm", "tokens_per_second",
)  # fmt: skip
PORTIONS = 10


def measure_projection(folder: Path, uri: str | None, steps: int) -> dict[str, float]:
    """Return metrics a second, wall and CPU."""
    from orchestrator.plan.plan import make_plan
    from orchestrator.study.load import load_study
    from orchestrator.tracking.projection import MlflowProjection
    from orchestrator.tracking.views import FinalSnapshot, StudyView, TrialView

    file = folder / "study.yaml"
    file.write_text(STUDY.format(name=f"tracking-{time.time_ns()}"), encoding="utf-8")
    plan = make_plan(load_study(file))
    trials = [trial for trial in plan.trials if not trial.untrained]
    projection = MlflowProjection(folder, uri)
    views: dict[tuple[str, str], TrialView] = {}
    study = StudyView(plan=plan, trials=views)
    projection.reconcile(study)
    folders = {trial.fingerprint: folder / "trials" / trial.fingerprint[:8] for trial in trials}
    wall, cpu = time.perf_counter(), time.process_time()
    for trial in trials:
        view = TrialView(
            trial=trial,
            status="RUNNING",
            metrics={},
            folders=[folders[trial.fingerprint]],
            seconds={},
            data={},
        )
        views[view.key] = view
        projection.reconcile(study)
    for portion in range(PORTIONS):
        for trial in trials:
            append_points(
                folders[trial.fingerprint], portion * steps // PORTIONS, steps // PORTIONS
            )
        projection.reconcile(study)
    for trial in trials:
        write_responses(folders[trial.fingerprint])
        view = TrialView(
            trial=trial,
            status="FINISHED",
            metrics={"shapes/chair_i": 10.0, "shapes/cover": 90.0},
            folders=[folders[trial.fingerprint]],
            seconds={"train": 1.0},
            data={"pairs": 16},
        )
        views[view.key] = view
        projection.reconcile(study)
    end = FinalSnapshot(time=time.time(), status="FINISHED", ended=None, arms=())
    projection.reconcile(replace(study, ends=(end,)))
    metrics = len(trials) * (steps * len(FIGURES) + 4)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"metrics": metrics, "per_s": metrics / wall, "per_cpu_s": metrics / cpu}


def measure_single_calls(folder: Path, uri: str | None, metrics: int = 200) -> float:
    """Return metrics a second by one call of MLflow's client for each."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
    run = client.create_run(client.create_experiment(f"one-by-one-{time.time_ns()}")).info.run_id
    began = time.perf_counter()
    for step in range(metrics):
        client.log_metric(run, "loss", 1 / (step + 1), step=step)
    rate = metrics / (time.perf_counter() - began)
    client.set_terminated(run)
    return rate


def append_points(folder: Path, done: int, steps: int) -> None:
    """Append points to a trial's curves."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "curves.jsonl").open("a", encoding="utf-8") as file:
        for step in range(done + 1, done + steps + 1):
            figures = {name: step / (place + 1) for place, name in enumerate(FIGURES)}
            file.write(json.dumps({"step": step, "time": time.time(), "figures": figures}) + "\n")


def write_responses(folder: Path) -> None:
    """Write a trial's responses."""
    row = {"item": "i", "prompt": "What is there?", "response": "A red ball.", "truth": ["ball"]}
    (folder / "responses").mkdir()
    (folder / "responses" / "report-shapes.jsonl").write_text(
        (json.dumps(row) + "\n") * 50, encoding="utf-8"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500, help="steps of each of the 8 trials")
    parser.add_argument("--tracking-uri", help="an MLflow server; without it SQLite")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    found: list[dict[str, float]] = []
    single: list[float] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            found.append(measure_projection(place, options.tracking_uri, options.steps))
            single.append(measure_single_calls(place, options.tracking_uri))
    figures: dict[str, Any] = {
        "store": "server" if options.tracking_uri else "sqlite",
        "metrics": int(found[0]["metrics"]),
        "tracker_per_s": summarize_repeats([repeat["per_s"] for repeat in found]),
        "tracker_per_cpu_s": summarize_repeats([repeat["per_cpu_s"] for repeat in found]),
        "one_by_one_per_s": summarize_repeats(single),
    }
    if options.json:
        print(json.dumps({"benchmark": "tracking", "machine": machine, "figures": figures}))
        return
    print(format_machine(machine))
    print(
        f"{figures['store']}: {figures['metrics']} metrics, "
        f"{figures['tracker_per_s']['median']:.0f} a second by the tracker "
        f"({figures['tracker_per_cpu_s']['median']:.0f} a CPU second), "
        f"{figures['one_by_one_per_s']['median']:.0f} a second one by one"
    )


if __name__ == "__main__":
    main()
