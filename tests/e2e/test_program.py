"""The program as a user runs it, on Ray and without, on the embedded world."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(sys.executable).parent / "chip-ablate"
STUDY = """
study: short
question: Which?
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0]
baseline: {objective: dpo}
benchmarks:
  report: [{name: shapes, limit: 20}]
primary: {metric: shapes/chair_i, goal: minimize}
"""
SHORT = ["--set", "training.max_steps=3"]
NAME = "short+training.max_steps=3"

pytestmark = pytest.mark.e2e


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(STUDY)
    return path


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        command, env=kept, capture_output=True, text=True, timeout=300, check=False, **options
    )


def read_result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def list_run_statuses(workdir: Path) -> dict[str, list[str]]:
    """Return chip.kind -> statuses of the active runs."""
    with sqlite3.connect(workdir / "mlflow.db") as database:
        rows = database.execute(
            "select tags.value, runs.status from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'chip.kind' and runs.lifecycle_stage = 'active'"
        ).fetchall()
    found: dict[str, list[str]] = {}
    for kind, status in rows:
        found.setdefault(kind, []).append(status)
    return found


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """What a run of the study came to."""

    folder: Path  # the current one; its work directory is `w`
    result: dict[str, Any]
    weights: list[bytes]
    kinds: dict[str, list[str]]


def run_study(folder: Path, *arguments: object) -> StudyRun:
    done = run("run", *arguments, "--workdir", "w", "--json", cwd=folder)
    files = (folder / "w").rglob("model.safetensors")
    return StudyRun(
        folder=folder,
        result=read_result(done),
        weights=sorted(path.read_bytes() for path in files),
        kinds=list_run_statuses(folder / "w"),
    )


@pytest.fixture(scope="module")
def inline_run(
    tmp_path_factory: pytest.TempPathFactory, with_store: Callable[[Path], Path]
) -> StudyRun:
    """The study as it ran without Ray; its work directory is used on."""
    folder = tmp_path_factory.mktemp("inline")
    with_store(folder / "w")
    (folder / "short.yaml").write_text(STUDY)
    return run_study(folder, "short.yaml", *SHORT, "--executor", "inline")


@pytest.fixture(scope="module")
def reseeded_run(inline_run: StudyRun) -> StudyRun:
    """The same with another seed."""
    more = ("--executor", "inline", "--seeds", "0", "1")
    return run_study(inline_run.folder, "short.yaml", *SHORT, *more)


@pytest.mark.ray
def test_ray_and_inline_give_the_same_figures_to_the_bit(
    inline_run: StudyRun, study: Path, tmp_path: Path
) -> None:
    on_ray = run_study(tmp_path, study, *SHORT, "--executor", "ray")
    for one, other in zip(inline_run.result["arms"], on_ray.result["arms"], strict=True):
        assert one["figures"] == other["figures"]
        assert len(one["figures"]) == 4
    assert len(inline_run.weights) >= 2
    assert inline_run.weights == on_ray.weights
    for each in (inline_run, on_ray):
        assert each.kinds == {
            "study": ["FINISHED"],
            "arm": ["FINISHED"] * 2,
            "trial": ["FINISHED"] * 2,
            "base": ["FINISHED"],
        }


def test_markdown_csv_and_mlflow_have_the_same_figures(reseeded_run: StudyRun) -> None:
    compare = reseeded_run.result["compare"]
    assert compare.startswith("http://127.0.0.1:5000/#/compare-runs?runs=")
    work = reseeded_run.folder / "w"
    folder = work / "studies" / NAME / "report"
    with (folder / "report.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["arm"] == "chip"]
    assert len(lines) == 4
    text = (folder / "report.md").read_text()
    with sqlite3.connect(work / "mlflow.db") as database:
        (arm,) = database.execute("select run_uuid from runs where name = 'chip'").fetchone()
        metrics = dict(
            database.execute("select key, value from latest_metrics where run_uuid = ?", (arm,))
        )
        tags = dict(database.execute("select key, value from tags where run_uuid = ?", (arm,)))
        (artifacts,) = database.execute(
            "select runs.artifact_uri from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'chip.kind' and tags.value = 'study'"
        ).fetchone()
    columns = {"": "mean", ".sd": "sd", ".low": "low", ".high": "high",
               ".difference": "difference", ".p_adjusted": "p_adjusted"}  # fmt: skip
    for line in lines:
        name = line["metric"]
        for suffix, column in columns.items():
            shown = float(line[column]) if line[column] else None
            assert metrics.get(name + suffix) == shown, (name, column)
        assert f"{float(line['mean']):.2f} ± {float(line['sd']):.2f}" in text
    primary = next(line for line in lines if line["metric"] == "shapes/chair_i")
    assert tags["chip.verdict"] == primary["verdict"]
    kept = Path(artifacts.removeprefix("file://")) / "report"
    assert (kept / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert (kept / "figures" / "forest-shapes-chair_i.png").exists()


def test_running_again_runs_nothing_and_a_seed_more_runs_its_own(
    inline_run: StudyRun, reseeded_run: StudyRun
) -> None:
    assert inline_run.result["executed"] == 3
    assert reseeded_run.result["executed"] == 2
    assert len(reseeded_run.kinds["trial"]) == 4
    folder, options = reseeded_run.folder, ["short.yaml", *SHORT, "--workdir", "w"]
    again = run("run", *options, "--executor", "inline", "--seeds", "0", "1", "--json", cwd=folder)
    assert read_result(again)["executed"] == 0
    assert "nothing to run" in again.stderr
    status = json.loads(run("status", *options, "--json", cwd=folder).stdout)
    assert {trial["state"] for trial in status["trials"]} == {"done"}
    report = run("report", *options, cwd=folder)
    page = Path("w") / "studies" / NAME / "report" / "report.html"
    answer, where, *_ = report.stdout.splitlines()
    assert "shapes/chair_i" in answer
    assert f"report: {page}" in report.stdout
    assert "base (untrained)" in report.stdout
    written = folder / page
    assert written.read_text().startswith("<!DOCTYPE html>")
    assert (written.parent / "figures" / "training.pdf").exists()


# tests/faults kills a driver too; how its runs look in MLflow then is held here alone.
@pytest.mark.slow
@pytest.mark.ray
def test_a_driver_that_was_killed_is_taken_up_by_the_next(study: Path, tmp_path: Path) -> None:
    longer = ["run", study, "--set", "training.max_steps=12", "--workdir", "w"]
    driver = subprocess.Popen(
        [str(PROGRAM), *map(str, longer)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    finished = []
    for line in driver.stdout:  # kill it in the middle of a training, after one has ended
        if " seed 0: done in" in line:
            finished.append(line.split(",")[0])
            break
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not list(
        (tmp_path / "w" / "trials").glob("*/attempt-1/curves.jsonl")
    ):
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert "RUNNING" in [
        status for kind in list_run_statuses(tmp_path / "w").values() for status in kind
    ]

    done = read_result(run(*longer, "--json", cwd=tmp_path))
    assert done["executed"] <= 1  # the one that was cut short
    assert not done["missing"]
    runs = list_run_statuses(tmp_path / "w")
    assert {status for kind in runs.values() for status in kind} == {"FINISHED"}
    assert {kind: len(statuses) for kind, statuses in runs.items()} == {
        "study": 1,
        "arm": 2,
        "trial": 2,
        "base": 1,
    }
    with sqlite3.connect(tmp_path / "w" / "mlflow.db") as database:
        doubled = database.execute(
            "select run_uuid, key, step from metrics where key = 'train/loss' "
            "group by run_uuid, key, step having count(*) > 1"
        ).fetchall()
    assert doubled == []


def test_a_failing_trial_is_told_and_the_others_go_on(
    study: Path, tmp_path: Path, with_store: Callable[[Path], Path]
) -> None:
    with_store(tmp_path / "w")
    text = STUDY.replace("objective: [dpo, chip]", "optimizer.lr: [1e-5, 1e30]")
    study.write_text(text.replace("baseline: {objective: dpo}", "baseline: {optimizer.lr: 1e-5}"))
    changes = [*SHORT, "--set", "optimizer.clip=null"]
    options = ["--executor", "inline", "--workdir", "w", "--json"]
    done = run("run", study, *changes, *options, cwd=tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    ((name, reason),) = found["failed"].items()
    assert name == "1e30, seed 0"
    assert reason.startswith(("the loss is", "the gradient's norm is"))
    assert found["missing"] == ["1e30, seed 0 (failed)"]
    assert found["arms"][1]["seeds"] == {"0": "done"}
    assert sorted(list_run_statuses(tmp_path / "w")["trial"]) == ["FAILED", "FINISHED"]
    ledger = (tmp_path / "w" / "ledger" / "ledger.jsonl").read_text()
    assert reason in ledger
    assert "Traceback" not in done.stderr


def test_two_drivers_on_one_study(study: Path, tmp_path: Path) -> None:
    arguments = [str(PROGRAM), "run", str(study), "--executor", "inline", "--workdir", "w"]
    first = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while "started" not in first.stdout.readline():
        pass
    second = run(*arguments[1:], cwd=tmp_path)
    assert second.returncode == 2
    assert second.stderr == (
        f"chip-ablate: study short is being run by process {first.pid} on {os.uname().nodename}: "
        "wait for it, or stop it first\n"
    )
    first.kill()
    first.wait()


def test_help_is_quick(tmp_path: Path) -> None:
    began = time.monotonic()
    assert "Example: chip-ablate run encoder" in run("--help", cwd=tmp_path).stdout
    assert time.monotonic() - began < 5  # nothing heavy is imported for it
