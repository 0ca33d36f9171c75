"""Figures that come to a study's runs from beside, on a real store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.plan.plan import Plan
from orchestrator.tracking.attachments import StudyAttachment, attach_files
from orchestrator.tracking.client import MlflowStore, Run
from orchestrator.tracking.names import encode_name
from orchestrator.tracking.views import ArmView, TrialView

from ..fakes import InlineTracker

STUDY = """
study: small
question: Which?
factors: {objective: [dpo, chip]}
seeds: [0, 1]
benchmarks: {report: [shapes]}
"""


def read_runs(workdir: Path) -> dict[str, Run]:
    store = MlflowStore(workdir)
    store.open("small")
    return {run.tags["mlflow.runName"]: run for run in store.runs()}


def close_tracker(tracker: InlineTracker, plan: Plan, metric: str) -> None:
    arms = [ArmView(arm=arm, figures={metric: 1.0}, status="FINISHED") for arm in plan.arms]
    tracker.close(arms, "FINISHED", None)


def make_view(trial: object, folder: Path) -> TrialView:
    return TrialView(
        trial=trial,  # type: ignore[arg-type]
        status="FINISHED",
        metrics={},
        folders=[folder],
        seconds={},
        data={},
    )


@pytest.fixture
def plan(plan_of: Callable[..., Plan]) -> Plan:
    return plan_of(STUDY)


def test_figures_lie_with_what_they_are_of(
    plan: Plan,
    tracker: InlineTracker,
    workdir: Path,
    write_attempt: Callable[..., Path],
    tmp_path: Path,
) -> None:
    arm = plan.arms[1]
    trial = arm.trials[0]
    tracker.open(plan, [make_view(trial, write_attempt(trial))])
    close_tracker(tracker, plan, "shapes/chair_i")
    before = read_runs(workdir)
    file = tmp_path / "told.md"
    file.write_text("told")
    attached = StudyAttachment(
        study={"human/shapes/chip, a vs dpo/win": 50.0},
        arms={arm.name: (arm, {"representation/probe_auc": 0.9})},
        trials=[(arm, trial, {"representation/probe_auc": 0.8})],
        files=[(file, "report/humans")],
    )
    assert attach_files(workdir, None, "small", attached) is None
    after = read_runs(workdir)
    name = encode_name("human/shapes/chip, a vs dpo/win")
    assert after["small"].metrics[name] == 50.0
    assert after["small"].tags[f"chip.name.{name[-16:]}"] == "human/shapes/chip, a vs dpo/win"
    assert after[arm.name].metrics["representation/probe_auc"] == 0.9
    assert after[trial.name].metrics["representation/probe_auc"] == 0.8
    assert {run.id: run.status for run in after.values()} == {
        run.id: run.status for run in before.values()
    }
    told = workdir / "artifacts" / after["small"].id / "artifacts" / "report/humans/told.md"
    assert told.read_text() == "told"

    # A later run of the study leaves them where they are; it makes no new run of the arm.
    again = InlineTracker(workdir, None)
    again.open(plan, [])
    close_tracker(again, plan, "shapes/chair_i")
    assert read_runs(workdir)[arm.name].id == after[arm.name].id
    assert read_runs(workdir)[arm.name].metrics["representation/probe_auc"] == 0.9


def test_without_a_run_nothing_is_made(plan: Plan, workdir: Path) -> None:
    said = attach_files(workdir, None, "small", StudyAttachment(study={"human/x": 1.0}))
    assert said is not None and "no run of study small" in said
    (workdir / "mlflow.db").unlink()
    assert attach_files(workdir, None, "small", StudyAttachment(study={"human/x": 1.0})) == said
    assert not (workdir / "mlflow.db").exists()
