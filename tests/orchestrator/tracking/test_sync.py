"""`sync`: what a server missed is there afterwards, as if it had never been away."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.stores import find_differences, read_contents
from chip_core.utils.errors import UserError
from chip_core.utils.files import append_record
from orchestrator.cli import cli
from orchestrator.executors.base import Job, JobEvent, JobSource, JobStarted, RetryPolicy
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.run import run_study
from orchestrator.runner.sync import find_snapshots, sync_study
from orchestrator.study.model import Study
from orchestrator.tracking.attachments import StudyAttachment, attach_files, reattach_files
from orchestrator.tracking.projection import MlflowProjection
from orchestrator.tracking.tracker import Tracker

from ..fakes import FakeExecutor

pytestmark = pytest.mark.usefixtures("blank_figures")

STUDY = """
study: small
question: Which?
factors: {objective: [dpo, chip]}
seeds: [0, 1]
benchmarks: {report: [shapes]}
primary: {metric: shapes/chair_i, goal: minimize}
"""
FAILS, KILLED = "chip, seed 1", "dpo, seed 1"
NOWHERE = "http://127.0.0.1:9"


@dataclass
class CurveWritingExecutor(FakeExecutor):
    """Leaves curves and responses too; dies within a trial once its curve has begun."""

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[JobEvent], None],
        retry: RetryPolicy | None = None,
        more: JobSource | None = None,
    ) -> None:
        def listener(event: JobEvent) -> None:
            job = event.job
            if isinstance(event, JobStarted) and not job.untrained:
                for step in range(1, 4):
                    point = {"step": step, "time": 1000.0 + step, "figures": {"loss": 1 / step}}
                    append_record(job.folder / "curves.jsonl", point)
                append_record(
                    job.folder / "responses" / "report-shapes.jsonl",
                    {"item": "0", "prompt": "What?", "response": "a", "truth": []},
                )
            on_event(event)

        super().run(jobs, listener, retry, more)


@pytest.fixture
def plan(load: Callable[..., Study]) -> Plan:
    return make_plan(load(STUDY))


@pytest.fixture
def other_store(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a second store, which saw nothing."""
    monkeypatch.chdir(tmp_path)  # where a database without a server puts artifacts
    shutil.copyfile(migrated_database, tmp_path / "other.db")
    return f"sqlite:///{tmp_path}/other.db"


def run(plan: Plan, workdir: Path, uri: str | None = None, **given: object) -> Tracker:
    tracker = Tracker(MlflowProjection(workdir, uri))
    tracker.first_pause, tracker.patience = 0.05, 5.0
    executor = CurveWritingExecutor(**given)  # type: ignore[arg-type]
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=lambda: executor,
        tracker=tracker,
        console=Console(quiet=True),
    )
    assert (outcome.waiting is None) == (uri is None)
    return tracker


def sync(workdir: Path, uri: str | None) -> None:
    [kept] = find_snapshots(workdir, ["small"])
    sync_study(kept, workdir, MlflowProjection(workdir, uri))


def test_a_store_that_missed_all_of_it_equals_one_that_was_up(
    plan: Plan, workdir: Path, other_store: str
) -> None:
    # A failure and Ctrl-C, then a run that ends well but for the failure.
    run(plan, workdir, failures={FAILS: "the loss is nan"}, interrupt_before=KILLED)
    run(plan, workdir, failures={FAILS: "the loss is nan"})
    up = read_contents(f"sqlite:///{workdir}/mlflow.db", "small")
    assert {run["status"] for run in up.values()} == {"FINISHED", "FAILED"}
    assert up["trial objective=dpo 1"]["metrics"]["train/loss"] == [
        (step, 1_000_000 + 1000 * step, 1 / step) for step in (1, 2, 3)
    ]
    sync(workdir, other_store)
    assert find_differences(read_contents(other_store, "small"), up) == []
    sync(workdir, other_store)  # once more: nothing is there twice
    assert find_differences(read_contents(other_store, "small"), up) == []


def test_a_study_that_was_stopped_is_shown_as_stopped(
    plan: Plan, workdir: Path, other_store: str
) -> None:
    run(plan, workdir, interrupt_before=KILLED)
    up = read_contents(f"sqlite:///{workdir}/mlflow.db", "small")
    assert up["study"]["status"] == "KILLED"
    sync(workdir, other_store)
    assert find_differences(read_contents(other_store, "small"), up) == []


def test_a_study_without_a_server_is_whole_after_sync(plan: Plan, workdir: Path) -> None:
    tracker = run(plan, workdir, NOWHERE)
    waiting = tracker.state().pending
    assert waiting is not None
    assert sorted(waiting.trials) == sorted(["base", *(trial.name for trial in plan.trials[1:])])
    sync(workdir, None)
    shown = read_contents(f"sqlite:///{workdir}/mlflow.db", "small")
    assert len(shown) == 1 + 1 + 2 + 4  # study, base, arms, (arm, seed)
    assert {run["status"] for run in shown.values()} == {"FINISHED"}
    assert "report/report.html" in shown["study"]["artifacts"]
    # seeds 0 and 1 give 10 and 11 under dpo
    assert shown["arm objective=dpo"]["metrics"]["shapes/chair_i"][0][2] == 10.5


def test_a_store_that_saw_half_is_completed(plan: Plan, workdir: Path, other_store: str) -> None:
    run(plan, workdir, interrupt_before=KILLED)
    half = workdir.parent / "half.db"
    shutil.copyfile(workdir / "mlflow.db", half)
    run(plan, workdir)
    up = read_contents(f"sqlite:///{workdir}/mlflow.db", "small")
    sync(workdir, f"sqlite:///{half}")
    assert find_differences(read_contents(f"sqlite:///{half}", "small"), up) == []


def test_a_locked_database_stops_nothing(
    plan: Plan, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.tracking.address._CONNECT_SECONDS", 0.1)
    holder = sqlite3.connect(workdir / "mlflow.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    tracker = Tracker(MlflowProjection(workdir))
    tracker.first_pause, tracker.patience = 0.05, 1.0
    outcome = run_study(
        plan,
        workdir=workdir,
        executor=CurveWritingExecutor,
        tracker=tracker,
        console=Console(quiet=True),
    )
    assert not outcome.failed
    assert outcome.waiting is not None
    assert "locked" in outcome.waiting.reason
    holder.close()
    sync(workdir, None)
    shown = read_contents(f"sqlite:///{workdir}/mlflow.db", "small")
    assert {run["status"] for run in shown.values()} == {"FINISHED"}


def test_what_was_attached_from_beside_is_shown_again(
    plan: Plan, workdir: Path, other_store: str
) -> None:
    run(plan, workdir)
    attached = StudyAttachment(
        study={"human/win": 50.0}, arms={"dpo": (plan.arms[0], {"representation/far": 2.0})}
    )
    said = attach_files(workdir, NOWHERE, "small", attached)
    assert said is not None
    assert "chip-ablate sync small" in said
    sync(workdir, other_store)
    reattach_files(workdir, other_store, "small")
    shown = read_contents(other_store, "small")
    assert [point[2] for point in shown["study"]["metrics"]["human/win"]] == [50.0]
    arm = shown["arm objective=dpo"]["metrics"]["representation/far"]
    assert [point[2] for point in arm] == [2.0]


def test_the_command_says_what_it_did(plan: Plan, workdir: Path) -> None:
    run(plan, workdir, NOWHERE)
    where = ["--workdir", str(workdir)]
    told = CliRunner().invoke(cli, ["sync", "small", *where], catch_exceptions=False)
    assert told.output.startswith("small: all tracked: 5 trials on sqlite:///")
    told = CliRunner().invoke(cli, ["sync", "--json", *where], catch_exceptions=False)
    assert [one["study"] for one in json.loads(told.output)["synced"]] == ["small"]


def test_a_study_that_is_not_there_or_has_no_file_is_one_line(
    plan: Plan, workdir: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no study was run in"):
        find_snapshots(workdir, [])
    run(plan, workdir, NOWHERE)
    with pytest.raises(UserError, match="other: was not run in .*: choose one of small"):
        find_snapshots(workdir, ["other"])
    assert [kept.study for kept in find_snapshots(workdir, [plan.study.source])] == ["small"]
    (tmp_path / "study.yaml").unlink()
    with pytest.raises(UserError, match="its file .* is gone"):
        sync(workdir, None)
