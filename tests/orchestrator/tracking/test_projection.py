"""The MLflow tracker on a real store: what a person sees there, whatever happened before."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console

from benchmarks.stores import find_differences, read_contents
from chip_core.utils.errors import UserError
from orchestrator.plan.plan import Plan
from orchestrator.run import run_study
from orchestrator.tracking.address import StoreUnavailable, resolve_uri, server_address
from orchestrator.tracking.client import MlflowStore, Point
from orchestrator.tracking.projection import UI, MlflowProjection
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import ArmView, FinalSnapshot, StudyView, TrialView

from ..fakes import FakeExecutor, InlineTracker
from ..program import run_program
from .conftest import make_running_view, wait_until

WRITES = (
    "create_run",
    "log_batch",
    "log_artifacts",
    "update_run",
    "set_terminated",
    "set_tag",
    "delete_tag",
    "get_run",
    "get_metric_history",
)


STUDY = """
study: small
question: Which?
factors: {objective: [dpo, chip]}
seeds: [0, 1]
benchmarks: {report: [shapes]}
"""
ALL = {"study": 1, "base": 1, "arm": 2, "trial": 4}  # 2 objectives, 2 seeds


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def plan(plan_of: Callable[..., Plan]) -> Plan:
    return plan_of(STUDY)


def make_arm_views(plan: Plan, **figures: float) -> list[ArmView]:
    figures = figures or {"shapes/chair_i": 12.5}
    return [ArmView(arm=arm, figures=figures, status="FINISHED") for arm in plan.arms]


def record_calls(tracker: InlineTracker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the calls to MLflow's client that a tracker makes."""
    from mlflow.tracking import MlflowClient

    calls: list[str] = []
    for name in (*WRITES, "search_runs"):
        original = getattr(MlflowClient, name)

        def noted(
            self: Any, *words: Any, _name: str = name, _call: Any = original, **named: Any
        ) -> Any:
            calls.append(_name)
            return _call(self, *words, **named)

        monkeypatch.setattr(MlflowClient, name, noted)
    return calls


def test_every_arm_and_seed_has_its_run_in_its_place(tracker, plan, run_all_trials, read_mlflow):
    run_all_trials(tracker, plan)
    tracker.close(make_arm_views(plan), "FINISHED", None)

    seen = read_mlflow()
    assert seen.count_kinds() == ALL
    assert {run.info.status for run in seen.runs} == {"FINISHED"}
    [study] = seen.list_runs("study")
    assert study.info.run_name == "small"
    assert study.data.tags["mlflow.note.content"] == "Which?"
    [base] = seen.list_runs("base")
    assert base.data.tags["mlflow.parentRunId"] == study.info.run_id
    assert base.data.params == {}
    for arm in plan.arms:
        run = seen.find_arm_run(arm.name)
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert run.data.params == arm.params
        for trial in arm.trials:
            below = seen.find_trial_run(trial)
            assert below.data.tags["mlflow.parentRunId"] == run.info.run_id
            assert below.data.params == {**trial.params, "seed": str(trial.seed)}
            tags = below.data.tags
            assert tags["chip.study"] == "small"
            assert tags["chip.arm"] == run.data.tags["chip.arm"]
            assert tags["chip.seed"] == str(trial.seed)
            assert tags["chip.fingerprint"] == trial.fingerprint
            assert tags["chip.version"]


def test_a_trial_shows_figures_curves_and_files(
    tracker, plan, run_all_trials, read_mlflow, tmp_path
):
    run_all_trials(tracker, plan)
    seen = read_mlflow()
    run = seen.find_trial_run(plan.arms[0].trials[0])
    [figure] = seen.read_history(run, "shapes/chair_i")
    assert (figure.value, figure.step) == (12.5, 0)
    assert run.data.metrics["timing/train"] == 2.0
    assert run.data.tags["engine.reference"] == "stored"
    assert run.data.tags["engine.prefix_sharing"] == "on"
    points = seen.read_history(run, "train/loss")
    # time = 1000 s + step; the loss is the step
    assert [(p.step, p.value, p.timestamp) for p in points] == [
        (step, float(step), 1_000_000 + 1000 * step) for step in (1, 2, 3)
    ]
    assert seen.list_files(run) == ["config.json", "responses", "scores"]
    assert seen.list_files(run, "scores") == ["scores/report-shapes.json"]
    responses = "responses/report-shapes.json"
    file = seen.client.download_artifacts(run.info.run_id, responses, str(tmp_path))
    table = json.loads(Path(file).read_text())
    assert table["columns"] == ["item", "prompt", "response", "truth"]
    assert len(table["data"]) == 50
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "responses/report-shapes.json", "type": "table"}
    ]


def test_what_checkpoints_came_to_is_shown_by_step(tracker, plan, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    name = "select/shapes/chair_i"
    view = finish_trial(trial, checkpoints={2: {name: 5.0}, 4: {name: 3.0}}, ended=2000.0)
    tracker.open(plan, [])
    tracker.show(make_running_view(trial, view.folders))
    for _ in range(2):  # what is there is not doubled
        tracker.show(view)
    seen = read_mlflow()
    points = seen.read_history(seen.find_trial_run(trial), f"checkpoint/{name}")
    assert [(p.step, p.value, p.timestamp) for p in points] == [(2, 5.0, 2_000_000),
                                                               (4, 3.0, 2_000_000)]  # fmt: skip


def test_checkpoints_that_are_half_there_are_completed(tracker, plan, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    name = "select/shapes/chair_i"
    view = finish_trial(
        trial, checkpoints={0: {name: 7.0}, 2: {name: 5.0}, 4: {name: 3.0}}, ended=2000.0
    )
    tracker.open(plan, [])
    tracker.show(make_running_view(trial, view.folders))
    [run] = [run for run in tracker.store.runs() if run.tags["chip.kind"] == "trial"]
    half = [Point(figures={f"checkpoint/{name}": 7.0}, time=2000.0)]
    tracker.store.log_points(run, half)
    tracker.show(view)
    points = read_mlflow().read_history(read_mlflow().find_trial_run(trial), f"checkpoint/{name}")
    assert [(p.step, p.value) for p in points] == [(0, 7.0), (2, 5.0), (4, 3.0)]


def test_artifacts_lie_in_the_work_directory(tracker, plan, run_all_trials, workdir):
    run_all_trials(tracker, plan)
    assert list((workdir / "artifacts").glob("*/artifacts/config.json"))


def test_a_curve_is_sent_as_it_grows(tracker, plan, write_attempt, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    folder = write_attempt(trial, steps=2)
    with (folder / "curves.jsonl").open("a") as file:
        file.write('{"step": 3, "time": 1003.0, "fig')  # a line that is not whole yet
    tracker.open(plan, [])
    tracker.show(make_running_view(trial, [folder]))
    assert len(read_mlflow().read_history(read_mlflow().find_trial_run(trial), "train/loss")) == 2
    with (folder / "curves.jsonl").open("a") as file:
        file.write('ures": {"loss": 3.0, "grad_norm": Infinity}}\n')
    tracker.reconcile(tracker.study)
    tracker.reconcile(tracker.study)
    run = read_mlflow().find_trial_run(trial)
    assert run.info.status == "RUNNING"
    assert [p.step for p in read_mlflow().read_history(run, "train/loss")] == [1, 2, 3]
    # Infinity is out.
    assert [p.step for p in read_mlflow().read_history(run, "train/grad_norm")] == [
        1,
        2,
    ]
    tracker.show(finish_trial(trial, folders=[folder]))
    assert [p.step for p in read_mlflow().read_history(run, "train/loss")] == [1, 2, 3]


def test_a_long_curve_takes_several_batches(
    tracker, plan, write_attempt, finish_trial, read_mlflow
):
    trial = plan.arms[0].trials[0]
    tracker.open(plan, [])
    tracker.show(finish_trial(trial, folders=[write_attempt(trial, steps=700)]))  # 2100 metrics
    run = read_mlflow().find_trial_run(trial)
    assert [p.step for p in read_mlflow().read_history(run, "train/grad_norm")] == [*range(1, 701)]


def test_a_new_attempt_after_a_kill_doubles_nothing(
    workdir, plan, write_attempt, finish_trial, read_mlflow
):
    trial = plan.arms[0].trials[0]
    first = write_attempt(trial, steps=2)
    killed = InlineTracker(workdir, None)
    killed.open(plan, [])
    killed.show(make_running_view(trial, [first]))
    before = read_mlflow()
    run_ids = {run.info.run_id for run in before.runs}
    assert before.find_trial_run(trial).info.status == "RUNNING"

    second = write_attempt(trial, steps=4, time=5000.0)
    tracker = InlineTracker(workdir, None)
    tracker.open(plan, [])
    tracker.show(make_running_view(trial, [second]))
    tracker.show(finish_trial(trial, folders=[first, second]))
    tracker.close(make_arm_views(plan), "FINISHED", None)
    after = read_mlflow()
    assert {run.info.run_id for run in after.runs} == run_ids  # the same runs went on
    assert {run.info.status for run in after.runs} == {"FINISHED"}
    points = after.read_history(after.find_trial_run(trial), "train/loss")
    assert [p.step for p in points] == [1, 2, 3, 4]
    assert len(after.read_history(after.find_trial_run(trial), "shapes/chair_i")) == 1


def test_what_is_not_taken_up_again_is_killed(workdir, plan, plan_of, write_attempt, read_mlflow):
    trials = [plan.arms[0].trials[0], plan.arms[-1].trials[0]]
    killed = InlineTracker(workdir, None)
    killed.open(plan, [])
    for trial in trials:
        killed.show(make_running_view(trial, [write_attempt(trial)]))

    smaller = plan_of(STUDY.replace("[dpo, chip]", "[dpo]"))
    tracker = InlineTracker(workdir, None)
    tracker.open(smaller, [])
    tracker.close(make_arm_views(smaller), "KILLED", None)
    seen = read_mlflow()
    assert {run.info.status for run in seen.runs} == {"FINISHED", "KILLED"}
    assert seen.count_kinds() == {
        "study": 1,
        "arm": 1,
        "trial": 1,
        "superseded arm": 1,
        "superseded trial": 1,
    }
    [gone] = seen.list_runs("superseded trial")
    assert gone.info.status == "KILLED"
    assert gone.data.tags["chip.superseded_by"] == "none"
    assert seen.find_trial_run(trials[0]).info.status == "KILLED"


def test_running_again_changes_nothing_and_asks_once(
    workdir, tracker, plan, run_all_trials, read_mlflow, monkeypatch
):
    views = run_all_trials(tracker, plan)
    tracker.close(make_arm_views(plan), "FINISHED", None)
    before = read_mlflow()
    again = InlineTracker(workdir, None)
    calls = record_calls(again, monkeypatch)
    again.open(plan, views)
    again.close(make_arm_views(plan), "FINISHED", None)
    assert calls == ["search_runs"]
    after = read_mlflow()
    assert [run.to_dictionary() for run in after.runs] == [r.to_dictionary() for r in before.runs]


def test_a_lost_store_is_filled_from_what_is_done(workdir, plan, finish_trial, read_mlflow):
    views = [finish_trial(trial) for trial in plan.trials]
    for _ in range(2):
        tracker = InlineTracker(workdir, None)
        tracker.open(plan, views)
        tracker.close(make_arm_views(plan), "FINISHED", None)
    seen = read_mlflow()
    assert seen.count_kinds() == ALL
    for trial in plan.trials:
        assert len(seen.read_history(seen.find_trial_run(trial), "train/loss")) == 3
        assert len(seen.read_history(seen.find_trial_run(trial), "shapes/chair_i")) == 1


def test_a_reused_trial_says_where_it_was_executed(tracker, plan, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    tracker.open(plan, [finish_trial(trial, reused_from="other")])
    run = read_mlflow().find_trial_run(trial)
    assert run.data.tags["chip.reused_from"] == "other"
    assert "chip.version" not in run.data.tags  # not this code executed it
    assert run.data.metrics == {"shapes/chair_i": 12.5}  # its curves are at its home
    assert "responses" in read_mlflow().list_files(run)


def test_a_failed_trial_says_why_until_it_ends_well(
    workdir, tracker, plan, finish_trial, read_mlflow
):
    trial = plan.arms[0].trials[0]
    failed = finish_trial(trial, status="FAILED", metrics={}, seconds={}, reason="the loss is nan")
    tracker.open(plan, [])
    tracker.show(make_running_view(trial, [failed.folders[0]]))
    tracker.show(failed)
    tracker.close([ArmView(arm=plan.arms[0], figures={}, status="FAILED")], "FAILED", None)
    seen = read_mlflow()
    assert seen.find_trial_run(trial).info.status == "FAILED"
    assert seen.find_trial_run(trial).data.tags["chip.reason"] == "the loss is nan"
    assert seen.find_arm_run(plan.arms[0].name).info.status == "FAILED"
    assert {run.info.status for run in seen.runs} == {"FAILED"}

    again = InlineTracker(workdir, None)
    again.open(plan, [])
    again.show(make_running_view(trial, [failed.folders[0]]))
    assert "chip.reason" not in read_mlflow().find_trial_run(trial).data.tags
    again.show(finish_trial(trial, folders=failed.folders))
    assert read_mlflow().find_trial_run(trial).info.status == "FINISHED"


def test_an_arms_aggregates_are_replaced(workdir, plan, read_mlflow):
    name = plan.arms[0].name
    for mean, expected in ((12.0, [12.0]), (12.0, [12.0]), (11.0, [12.0, 11.0])):
        tracker = InlineTracker(workdir, None)
        tracker.open(plan, [])
        tracker.close(make_arm_views(plan, **{"shapes/chair_i": mean}), "FINISHED", None)
        run = read_mlflow().find_arm_run(name)
        assert run.data.metrics == {"shapes/chair_i": mean}
        assert [p.value for p in read_mlflow().read_history(run, "shapes/chair_i")] == expected
        time.sleep(0.002)  # the latest is the one with the newer millisecond


def test_a_figure_that_an_arm_has_no_more_is_not_shown(workdir, plan, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    view = finish_trial(trial)
    for figures in ({"shapes/chair_i": 12.0, "shapes/chair_i.sd": 1.0}, {"shapes/chair_i": 12.0}):
        tracker = InlineTracker(workdir, None)
        tracker.open(plan, [view])
        tracker.close(make_arm_views(plan, **figures), "FINISHED", None)
    seen = read_mlflow()
    run = seen.find_arm_run(plan.arms[0].name)
    assert run.data.metrics == {"shapes/chair_i": 12.0}
    assert seen.find_trial_run(trial).data.tags["mlflow.parentRunId"] == run.info.run_id
    assert seen.count_kinds()["superseded arm"] == 2


def test_figures_that_are_no_numbers_are_left_out(tracker, plan, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    tracker.open(
        plan, [finish_trial(trial, metrics={"shapes/chair_i": 1.0, "shapes/hal": math.nan})]
    )
    tracker.close(make_arm_views(plan, a=1.0, b=math.inf), "FINISHED", None)
    assert "shapes/hal" not in read_mlflow().find_trial_run(trial).data.metrics
    assert read_mlflow().find_arm_run(plan.arms[0].name).data.metrics == {"a": 1.0}


def test_a_changed_recipe_supersedes_and_comes_back(
    workdir, tracker, plan, plan_of, finish_trial, run_all_trials, read_mlflow
):
    views = run_all_trials(tracker, plan)
    tracker.close(make_arm_views(plan), "FINISHED", None)
    old = {run.info.run_id for run in read_mlflow().list_runs("trial")}
    # A changed recipe keeps the study's name: as --set would, but for the name.
    changed = plan_of(STUDY, overrides={"optimizer.lr": 1e-4})
    changed = replace(changed, study=replace(changed.study, name="small"))
    other = [finish_trial(trial, chair_i=20.0) for trial in changed.trials]
    second = InlineTracker(workdir, None)
    second.open(changed, other)
    second.close(make_arm_views(changed), "FINISHED", None)
    seen = read_mlflow()
    # Base is the same model, so it stays.
    assert seen.count_kinds() == {**ALL, "superseded arm": 2, "superseded trial": 4}
    assert {run.data.metrics["shapes/chair_i"] for run in seen.list_runs("trial")} == {20.0}
    assert {run.info.run_id for run in seen.list_runs("superseded trial")} == old
    [study] = seen.list_runs("study")
    for run in seen.list_runs("superseded trial"):
        assert run.info.run_name.endswith("(superseded)")
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        successors = {trial.fingerprint for trial in changed.trials}
        assert run.data.tags["chip.superseded_by"] in successors

    third = InlineTracker(workdir, None)
    third.open(plan, views)
    third.close(make_arm_views(plan), "FINISHED", None)
    seen = read_mlflow()
    assert {run.info.run_id for run in seen.list_runs("trial")} == old
    assert {run.data.metrics["shapes/chair_i"] for run in seen.list_runs("trial")} == {12.5}
    assert not any("chip.superseded_by" in run.data.tags for run in seen.list_runs("trial"))
    assert {run.info.run_name for run in seen.list_runs("arm")} == {arm.name for arm in plan.arms}


def test_another_benchmark_setting_makes_new_runs_and_another_benchmark_does_not(
    workdir, tracker, plan, plan_of, finish_trial, run_all_trials, read_mlflow
):
    run_all_trials(tracker, plan)
    old = {run.info.run_id for run in read_mlflow().list_runs("trial")}
    more = plan_of(STUDY.replace("{report", "{select: [shapes], report"))
    InlineTracker(workdir, None).open(more, [])
    assert {run.info.run_id for run in read_mlflow().list_runs("trial")} == old

    other = plan_of(STUDY.replace("[shapes]", "[{name: shapes, limit: 2}]"))
    assert other.arms[0].trials[0].fingerprint == plan.arms[0].trials[0].fingerprint
    views = [finish_trial(trial, chair_i=50.0) for trial in other.trials]
    InlineTracker(workdir, None).open(other, views)
    seen = read_mlflow()
    assert {key: seen.count_kinds()[key] for key in ALL} == ALL
    for trial in other.trials:  # not 12.5 and then 50
        [figure] = seen.read_history(seen.find_trial_run(trial), "shapes/chair_i")
        assert figure.value == 50.0


def test_more_seeds_go_on_in_the_same_arms(
    workdir, tracker, plan, plan_of, run_all_trials, read_mlflow
):
    views = run_all_trials(tracker, plan)
    tracker.close(make_arm_views(plan), "FINISHED", None)
    arms = {run.info.run_id for run in read_mlflow().list_runs("arm")}
    more = InlineTracker(workdir, None)
    more.open(plan_of(STUDY, seeds=[0, 1, 2]), views)
    assert {run.info.run_id for run in read_mlflow().list_runs("arm")} == arms
    assert read_mlflow().count_kinds() == ALL


def test_of_two_runs_for_one_seed_one_stays(workdir, tracker, plan, run_all_trials, read_mlflow):
    views = run_all_trials(tracker, plan)
    seen = read_mlflow()
    twin = seen.find_trial_run(plan.arms[0].trials[0])
    tags = {key: value for key, value in twin.data.tags.items() if key.startswith("chip.")}
    seen.client.create_run(seen.experiment.experiment_id, tags=tags)
    InlineTracker(workdir, None).open(plan, views)
    seen = read_mlflow()
    assert seen.find_trial_run(plan.arms[0].trials[0]).info.run_id == twin.info.run_id
    assert [run.info.status for run in seen.list_runs("superseded trial")] == ["KILLED"]


def test_the_pictures_of_a_study_on_rejected_images_are_attached(
    tracker, plan_of, workdir, read_mlflow
):
    plan = plan_of(STUDY.replace("objective: [dpo, chip]", "rejected_image: [black, blur]"))
    run_study(
        plan,
        workdir=workdir,
        executor=FakeExecutor,
        tracker=tracker,
        console=Console(quiet=True),
    )
    [study] = read_mlflow().list_runs("study")
    assert "report/figures/rejected-images.png" in read_mlflow().list_files(study, "report/figures")


def test_the_report_is_attached_to_the_study(tracker, plan, tmp_path, read_mlflow):
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    (report / "report.html").write_text("<p>")
    (report / "figures" / "one.svg").write_text("<svg/>")
    tracker.open(plan, [])
    tracker.close(make_arm_views(plan), "FINISHED", report)
    [study] = read_mlflow().list_runs("study")
    assert read_mlflow().list_files(study, "report") == ["report/figures", "report/report.html"]


def test_an_arms_verdict_is_a_tag_until_it_is_none_any_more(workdir, plan, read_mlflow):
    for verdict in ("better", "inconclusive: too few seeds", None):
        tracker = InlineTracker(workdir, None)
        tracker.open(plan, [])
        first, second = make_arm_views(plan)
        tracker.close([first, replace(second, tags={"chip.verdict": verdict})], "FINISHED", None)
        assert read_mlflow().find_arm_run("chip").data.tags.get("chip.verdict") == verdict
        assert "chip.verdict" not in read_mlflow().find_arm_run("dpo").data.tags


def test_the_compare_page_names_the_arms_runs(tracker, plan, read_mlflow, workdir):
    tracker.open(plan, [])
    tracker.close(make_arm_views(plan), "FINISHED", None)
    address = urlsplit(tracker.state().compare)
    assert f"{address.scheme}://{address.netloc}" == UI
    route, _, query = address.fragment.partition("?")
    asked = {key: json.loads(value) for key, (value,) in parse_qs(query).items()}
    seen = read_mlflow()
    assert route == "/compare-runs"
    assert asked == {
        "runs": [seen.find_arm_run("dpo").info.run_id, seen.find_arm_run("chip").info.run_id],
        "experiments": [seen.experiment.experiment_id],
    }


def test_one_arm_is_compared_with_nothing(tracker, plan_of):
    tracker.open(plan_of(STUDY.replace("[dpo, chip]", "[dpo]")), [])
    assert tracker.state().compare is None


def test_the_pages_are_where_ui_serves_them_or_the_server_is():
    from orchestrator.commands.mlflow import ui

    defaults = {option.name: option.default for option in ui.params}
    assert f"http://{defaults['host']}:{defaults['port']}" == UI
    assert server_address("https://me:secret@host:1234/sub/") == "https://host:1234/sub"


def test_a_deleted_experiment_is_restored(workdir, tracker, plan, run_all_trials, read_mlflow):
    views = run_all_trials(tracker, plan)
    seen = read_mlflow()
    seen.client.delete_experiment(seen.experiment.experiment_id)
    InlineTracker(workdir, None).open(plan, views)
    assert read_mlflow().count_kinds() == ALL


def test_a_store_that_goes_away_does_not_stop_the_study(
    tracker, plan, finish_trial, read_mlflow, monkeypatch, caplog
):
    trial = plan.arms[0].trials[0]
    behind = Tracker(tracker)
    behind.first_pause = 0.01
    behind.open(plan, [])
    behind.confirm()
    with monkeypatch.context() as away:

        def refuse(*words: Any, **named: Any) -> None:
            raise ConnectionError("nobody there")

        away.setattr(tracker.store._client, "log_batch", refuse)
        view: TrialView = finish_trial(trial)
        behind.show(make_running_view(trial, [view.folders[0]]))
        behind.show(view)
        wait_until(lambda: "nobody there" in caplog.text)
    behind.close(make_arm_views(plan), "FINISHED", None)
    assert behind.state().pending is None
    run = read_mlflow().find_trial_run(trial)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"objective": "dpo", "seed": "0"}
    assert len(read_mlflow().read_history(run, "train/loss")) == 3


def test_a_run_that_was_made_without_an_answer_is_not_made_twice(
    tracker, plan, finish_trial, read_mlflow, monkeypatch
):
    trial = plan.arms[0].trials[0]
    behind = Tracker(tracker)
    behind.first_pause = 0.01
    behind.open(plan, [])
    behind.confirm()
    made = tracker.store._client.create_run
    lost = []

    def unanswered(*words: Any, **named: Any) -> Any:
        run = made(*words, **named)
        if not lost:
            lost.append(run)
            raise TimeoutError("no answer")
        return run

    monkeypatch.setattr(tracker.store._client, "create_run", unanswered)
    behind.show(finish_trial(trial))
    behind.close(make_arm_views(plan), "FINISHED", None)
    seen = read_mlflow()
    assert seen.find_trial_run(trial).info.run_id == lost[0].info.run_id
    assert seen.count_kinds() == {"study": 1, "arm": 2, "trial": 1}


def test_any_write_may_go_unanswered_and_nothing_is_there_twice(
    workdir, plan, finish_trial, tmp_path, migrated_database, monkeypatch
):
    from mlflow.tracking import MlflowClient

    views = [
        finish_trial(trial, began=1000.0, ended=1010.0 + n) for n, trial in enumerate(plan.trials)
    ]
    end = FinalSnapshot(time=0.0, status="FINISHED", ended=1020.0, arms=tuple(make_arm_views(plan)))
    study = StudyView(
        plan=plan, began=999.0, trials={view.key: view for view in views}, ends=(end,)
    )
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copyfile(migrated_database, whole / "mlflow.db")
    InlineTracker(whole).reconcile(study)

    unanswered: set[str] = set()
    for name in WRITES:
        original = getattr(MlflowClient, name)

        def once(
            self: Any, run: str, *words: Any, _name: str = name, _call: Any = original, **named: Any
        ) -> Any:
            found = _call(self, run, *words, **named)
            what = repr((_name, run, () if _name == "log_artifacts" else words, named))
            if what not in unanswered:
                unanswered.add(what)
                raise TimeoutError("no answer")
            return found

        monkeypatch.setattr(MlflowClient, name, once)
    tracker = InlineTracker(workdir)
    tries = 0
    while True:  # each try is heard once more
        tries += 1
        try:
            tracker.reconcile(study)
            break
        except StoreUnavailable:
            assert tries < 200
    monkeypatch.undo()
    # 8 runs are made, 5 of them trials with figures, curves, files, tags, RUNNING and FINISHED
    assert tries > 8 + 5 * 4
    up = read_contents(f"sqlite:///{whole}/mlflow.db", "small")
    assert len(up) == sum(ALL.values())
    assert find_differences(read_contents(f"sqlite:///{workdir}/mlflow.db", "small"), up) == []


def test_a_store_that_cannot_be_used_is_one_line(workdir, plan, tmp_path, monkeypatch):
    def complaint(uri: str) -> str:
        with pytest.raises(UserError) as told:
            InlineTracker(workdir, uri).open(plan, [])
        assert "\n" not in str(told.value)
        return str(told.value)

    began = time.monotonic()
    assert "start the server" in complaint("http://127.0.0.1:9")
    assert time.monotonic() - began < 5
    assert "sqlite:///FILE" in complaint(f"file://{tmp_path}/mlruns")
    (tmp_path / "notes.txt").write_text("no database at all, but long enough for a header" * 9)
    assert "fix it" in complaint(f"sqlite:///{tmp_path}/notes.txt")
    assert "secret" not in complaint("http://me:secret@127.0.0.1:9")


@pytest.mark.parametrize(
    ("uri", "away"),
    [
        ("http://127.0.0.1:9", True),  # nobody listens there
        ("http://nowhere.invalid", True),  # a name that nobody has, or no network
        ("https://127.0.0.1:9", True),
        ("gopher://127.0.0.1", False),  # MLflow knows no such store
        ("http://127.0.0.1:notaport", False),
    ],
)
def test_a_store_that_is_away_is_told_from_one_that_is_wrong(uri, away, workdir, plan):
    with pytest.raises(UserError) as told:
        InlineTracker(workdir, uri).open(plan, [])
    assert isinstance(told.value, StoreUnavailable) == away
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "it is empty"),
        (" http://h", "spaces around it"),
        ("sqlite:///a\nb.db", "invisible characters"),
        ("http://[::1", "Invalid IPv6"),
        ("http://", "names no host"),
        ("http:/h", "names no host"),
        ("https://:5000", "names no host"),
        ("http://a..b", "label empty"),
        ("http://h h", "a space in its host"),
        ("http://me:secret@h:65536", "out of range"),
        ("http://h:0", "port 0"),
        ("mysql://me:secret@h:x/db", "Port could not be cast"),
        ("sqlite://", "in-memory database"),
        ("sqlite:///:memory:", "in-memory database"),
        ("sqlite:///file:x?mode=memory&uri=true", "in-memory database"),
        ("sqlite://x.db", "three slashes"),
        ("sqlite:x.db", "Could not parse"),
        ("sqlite:///FOLDER", "names a folder"),
        ("sqlite:///FOLDER/new/", "names a folder"),
        ("sqlite:////dev/null", "names no file"),
        ("sqlite:////proc/x.db", "/proc: "),
        ("sqlite:///FOLDER/" + "x" * 300, "File name too long"),
        ("sqlite:///FOLDER/notes.txt/x.db", "Not a directory"),
        ("sqlite:///FOLDER/notes.txt", "not a database"),
        ("sqlite:///FOLDER/%00.db", "NUL"),
        ("sqlite:///FOLDER/LINK.db", "a broken link"),
        ("sqlite:///FOLDER/%41b/x.db", "there is no folder"),
        ("sqlite+nodriver:///x.db", "Can't load plugin"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:9/x", "not installed"),
        ("gopher://me:secret@h", "does not support this kind of store"),
        ("FOLDER/mlruns", "name a database"),
        ("file://FOLDER/mlruns", "name a database"),
        ("databricks://secretless", "databricks-sdk"),
    ],
)
@pytest.mark.parametrize("by", ["--tracking-uri", "MLFLOW_TRACKING_URI"])
def test_a_refused_address_is_told_soon_and_leaves_nothing(
    uri, why, by, study_file, tmp_path, monkeypatch, capsys
):
    if uri == "" and by == "MLFLOW_TRACKING_URI":
        pytest.skip("an empty variable is one that is not set")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("no database at all, but long enough for a header" * 9)
    (folder / "LINK.db").symlink_to("/nowhere/at/all.db")
    monkeypatch.chdir(folder)
    uri = uri.replace("FOLDER", str(folder))
    given = []
    if by == "--tracking-uri":
        given = [by, uri]
    else:
        monkeypatch.setenv(by, uri)
    before = sorted(tmp_path.rglob("*"))
    began = time.monotonic()
    assert run_program("run", study_file, "--executor", "inline", "--workdir", "work", *given) == 2
    assert time.monotonic() - began < 15  # on a busy machine; MLflow would try for a minute
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1, told
    assert why in told[0]
    assert "secret@" not in told[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_is_away_is_no_reason_not_to_begin(workdir):
    for uri in ("http://127.0.0.1:9", "https://127.0.0.1:9", "http://nowhere.invalid"):
        Tracker(MlflowProjection(workdir, uri)).check()


def test_a_check_makes_no_database(tmp_path):
    MlflowStore(tmp_path).check()
    MlflowStore(tmp_path, f"sqlite:///{tmp_path}/there/mlflow.db").check()
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_writes_to_is_away(workdir, monkeypatch):
    monkeypatch.setattr("orchestrator.tracking.address._CONNECT_SECONDS", 0.1)
    with closing(sqlite3.connect(workdir / "mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="is locked"):
            MlflowStore(workdir).check()


def test_a_work_directory_may_have_signs_that_an_address_has(tmp_path, plan):
    workdir = tmp_path / "there" / "50%20 off? #1"
    InlineTracker(workdir, None).open(plan, [])
    assert list((tmp_path / "there").iterdir()) == [workdir]  # nor one that an escape would name
    assert (workdir / "mlflow.db").stat().st_size > 0


def test_an_old_schema_says_how_to_mend_it(workdir, plan):
    with sqlite3.connect(workdir / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'long ago'")
    with pytest.raises(UserError, match="mlflow db upgrade sqlite:///"):
        InlineTracker(workdir, None).open(plan, [])


def test_where_runs_are_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert resolve_uri(tmp_path, None) == "http://there"
    assert resolve_uri(tmp_path, "http://here") == "http://here"


def test_a_password_is_not_shown():
    address = MlflowStore(Path(), "postgresql://me:secret@host/db").address
    assert address == "postgresql://me:***@host/db"
