"""Markdown and CSV, read again, against what MLflow has of the same study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.report.results import build_arm_views
from orchestrator.report.writers.files import write_report
from orchestrator.runner.jobs import trial_view
from orchestrator.state.ledger import Ledger
from orchestrator.tracking.client import MlflowStore, Run

from ...fakes import InlineTracker
from ..conftest import GOALS, STUDY, FinishedStudy
from ..table_readers import read_csv, read_tables

CHAIR = "shapes/chair_i"
COLUMNS = {
    "": "mean", ".sd": "sd", ".low": "low", ".high": "high", ".difference": "difference",
    ".p_adjusted": "p_adjusted",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture
def tracked(
    make_finished_study: Callable[..., FinishedStudy], with_store: Callable[[Path], Path]
) -> tuple[FinishedStudy, dict[str, Run]]:
    """A study of four arms and three seeds, its report written and its runs in MLflow."""
    made = make_finished_study(STUDY.replace("goal: minimize}", "smallest_difference: 4}"))
    report = made.make_report()
    write_report(report, made.folder)
    tracker = InlineTracker(with_store(made.workdir))
    ledger, study = Ledger(made.workdir), made.plan.study.name
    tracker.open(
        made.plan,
        [trial_view(trial, ledger, made.workdir, study, "FINISHED") for trial in made.plan.trials],
    )
    tracker.close(build_arm_views(report.summary), "FINISHED", made.folder)
    store = MlflowStore(made.workdir)
    store.open(study)
    return made, {run.tags["mlflow.runName"]: run for run in store.runs()}


def test_what_is_written_is_what_mlflow_has(tracked: tuple[FinishedStudy, dict[str, Run]]) -> None:
    made, runs = tracked
    arms = [arm.name for arm in made.plan.arms]
    lines = read_csv((made.folder / "report.csv").read_text())
    by_arm = {(line["arm"], line["metric"]): line for line in lines}
    for arm in arms:
        for metric in GOALS:
            name = f"shapes/{metric}"
            line = by_arm[arm, name]
            written = {
                f"{name}{suffix}": float(line[column])
                for suffix, column in COLUMNS.items()
                if line[column]
            }
            shown = {
                key: value
                for key, value in runs[arm].metrics.items()
                if key == name or key.startswith(f"{name}.")
            }
            assert written == shown  # to the last digit
        assert runs[arm].tags.get("chip.verdict", "") == by_arm[arm, CHAIR]["verdict"]
    for line in read_csv((made.folder / "values.csv").read_text()):
        run = runs[f"{line['arm']}, seed {line['seed']}" if line["seed"] else "base"]
        assert run.metrics[line["metric"]] == float(line["value"])


def test_markdown_is_what_mlflow_has_to_two_decimals(
    tracked: tuple[FinishedStudy, dict[str, Run]],
) -> None:
    made, runs = tracked
    first = read_tables((made.folder / "report.md").read_text())[0]
    rows = {row["objective, vision_encoder"].strip("*").split(" (")[0]: row for row in first}
    for arm in made.plan.arms:
        row, metrics = rows[arm.name], runs[arm.name].metrics
        mean, sd = row["mean ± sd"].strip("*").split(" ± ")
        assert float(mean) == round(metrics[CHAIR], 2)
        assert float(sd) == round(metrics[f"{CHAIR}.sd"], 2)
        if arm.baseline:
            assert row["difference (points)"] == "—" and f"{CHAIR}.difference" not in metrics
            continue
        assert float(row["difference (points)"]) == round(metrics[f"{CHAIR}.difference"], 2)
        assert json.loads(row["95 % interval"]) == [
            round(metrics[f"{CHAIR}.{bound}"], 2) for bound in ("low", "high")
        ]
