"""What MLflow does not take of a study: spelled so that it does, or left out; the rest is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from chip_core.utils.errors import UserError
from orchestrator.plan.plan import Plan
from orchestrator.report.writers.terminal import tracking_lines
from orchestrator.tracking.address import StoreRefused, StoreUnavailable
from orchestrator.tracking.client import MlflowStore, Point
from orchestrator.tracking.names import RUN, encode_name
from orchestrator.tracking.tracker import Tracker
from orchestrator.tracking.views import ArmView, PendingRuns

from ..fakes import InlineTracker
from ..program import run_program
from .conftest import make_running_view

STUDY = """
study: small
question: Which?
factors:
  "β, (scaled) @ 50 %": {"λ=1 / γ": {objective.beta: 0.1}, "../up": {objective.beta: 0.5}}
seeds: [0, 1]
benchmarks: {report: [shapes]}
"""
FACTOR = "β, (scaled) @ 50 %"
ODD = {
    "lab:Bench/right@1 (strict), %": 1.0,
    "lab:Bench/right@1 [strict], %": 2.0,  # the same but for signs that MLflow does not take
    "lab:Bench/../x": 3.0,
    "lab:Bench//y": 4.0,
    "x" * 300: 5.0,
    "shapes/chair_i": 6.0,
}


@pytest.fixture
def plan(plan_of: Callable[..., Plan]) -> Plan:
    return plan_of(STUDY)


def make_arm_views(plan: Plan, figures: dict[str, float]) -> list[ArmView]:
    return [ArmView(arm=arm, figures=figures, status="FINISHED") for arm in plan.arms]


def refuse_keys(
    tracker: InlineTracker, monkeypatch: pytest.MonkeyPatch, *keys: str
) -> list[dict[str, Any]]:
    """Let a store refuse requests in which a key is, as a server does whose rules are narrower."""
    client = tracker.store._client
    original, asked = client.log_batch, []

    def log_batch(run_id: str, **entities: Any) -> None:
        asked.append(entities)
        for entity in (one for kind in entities.values() for one in kind):
            if entity.key in keys:
                raise MlflowException(f"Invalid value '{entity.key}'", INVALID_PARAMETER_VALUE)
        original(run_id, **entities)

    monkeypatch.setattr(client, "log_batch", log_batch)
    return asked


def test_all_of_a_study_with_odd_names_is_shown(tracker, plan, finish_trial, read_mlflow, workdir):
    view = finish_trial(plan.arms[0].trials[0], metrics=ODD, folders=[])
    tracker.open(plan, [view])
    tracker.close(make_arm_views(plan, ODD), "FINISHED", None)
    seen = read_mlflow()
    assert seen.count_kinds() == {"study": 1, "arm": 2, "trial": 1}
    for run in (seen.find_trial_run(view.trial), seen.find_arm_run("λ=1 / γ")):
        assert {encode_name(name): value for name, value in ODD.items()}.items() <= (
            run.data.metrics.items()
        )
        said = {k: v for k, v in run.data.tags.items() if k.startswith("chip.name.")}
        odd = {name for name in (*ODD, FACTOR) if encode_name(name) != name}
        assert set(said.values()) == odd
        assert all(
            encode_name(name).endswith(key.removeprefix("chip.name.")) for key, name in said.items()
        )
        assert run.data.params[encode_name(FACTOR)] == "λ=1 / γ"
    assert tracker.state().refused == {}
    before = [(run.info.run_id, run.data.tags, run.data.metrics) for run in seen.runs]
    again = InlineTracker(workdir, None)
    again.open(plan, [view])
    again.close(make_arm_views(plan, ODD), "FINISHED", None)
    assert sorted(before) == sorted(
        (run.info.run_id, run.data.tags, run.data.metrics) for run in read_mlflow().runs
    )


def test_texts_may_be_long_or_odd(tracker, plan, finish_trial, read_mlflow):
    trial = plan.arms[0].trials[0]
    reason = "no file 'caf\udce9': " + "x" * 9000  # a name that is no UTF-8, as Python has it
    tracker.open(plan, [])
    tracker.show(finish_trial(trial, status="FAILED", reason=reason))
    run = read_mlflow().find_trial_run(trial)
    assert run.info.status == "FAILED"
    assert run.data.tags["chip.reason"].startswith("no file 'caf\N{REPLACEMENT CHARACTER}': xxx")
    assert len(run.data.tags["chip.reason"]) == 8000


def test_a_question_of_a_page_and_many_tags_go_in_several_requests(
    plan_of, tracker, finish_trial, read_mlflow
):
    plan = plan_of(STUDY.replace("Which?", "Which " + "one " * 4000))
    view = finish_trial(
        plan.arms[0].trials[0],
        metadata={f"report/bench{n}": {"n": n, "said": "é" * 1000} for n in range(150)},
    )
    tracker.open(plan, [view])
    [study] = read_mlflow().list_runs("study")
    assert study.data.tags["mlflow.note.content"].startswith("Which one one")
    tags = read_mlflow().find_trial_run(view.trial).data.tags
    assert sum(tag.startswith("chip.scored.") for tag in tags) == 150


def test_one_metric_that_is_refused_stops_nothing(
    tracker, plan, finish_trial, read_mlflow, monkeypatch, caplog
):
    trial, other = plan.arms[0].trials
    behind = Tracker(tracker)
    behind.first_pause = 0.01
    behind.open(plan, [])
    behind.confirm()
    asked = refuse_keys(tracker, monkeypatch, "lab/bad", "train/grad_norm")
    figures = {"lab/bad": 1.0, "lab/good": 2.0, "shapes/chair_i": 3.0}
    for done in (trial, other):
        behind.show(finish_trial(done, metrics=figures))
    behind.close(make_arm_views(plan, figures), "FINISHED", None)
    assert behind.state().pending is None
    assert set(behind.state().refused) == {"metric lab/bad", "metric train/grad_norm"}
    assert "Invalid value 'lab/bad'" in behind.state().refused["metric lab/bad"]
    seen = read_mlflow()
    assert {run.info.status for run in seen.list_runs("study") + seen.list_runs("arm")} == {
        "FINISHED"
    }
    for done in (trial, other):
        run = seen.find_trial_run(done)
        assert run.info.status == "FINISHED"
        assert run.data.metrics["lab/good"] == 2.0
        assert run.data.metrics["train/loss"] == 3.0  # its last step is 3
        assert "lab/bad" not in run.data.metrics
        assert len(seen.read_history(run, "train/loss")) == 3
    told = [record.message for record in caplog.records if "lab/bad" in record.message]
    assert len(told) == 1  # however many runs have it
    bad = [one for one in asked if any(e.key == "lab/bad" for e in one.get("metrics", []))]
    assert len(bad) == 2 * 4  # a run each: with the rest, and alone; not again


def test_a_tag_that_is_refused_makes_the_run_all_the_same(tracker, plan, read_mlflow, monkeypatch):
    tracker.open(plan, [])
    made = tracker.store._client.create_run

    def create_run(experiment: str, start: Any = None, tags: Any = None) -> Any:
        if "chip.study" in (tags or {}):
            raise MlflowException("Invalid value 'chip.study'", INVALID_PARAMETER_VALUE)
        return made(experiment, start, tags)

    monkeypatch.setattr(tracker.store._client, "create_run", create_run)
    refuse_keys(tracker, monkeypatch, "chip.study")
    tracker.show(make_running_view(plan.arms[0].trials[0], [Path("nowhere")]))
    run = read_mlflow().find_trial_run(plan.arms[0].trials[0])
    assert run.data.tags["chip.seed"] == "0"
    assert set(tracker.state().refused) == {"tag chip.study"}


def test_a_file_that_is_refused_leaves_the_others(
    tracker, plan, tmp_path, read_mlflow, monkeypatch
):
    report = tmp_path / "report"
    (report / "figures").mkdir(parents=True)
    for name in ("report.html", "figures/a.png", "figures/bad.png"):
        (report / name).write_text(name)
    tracker.open(plan, [])
    client = tracker.store._client
    original = client.log_artifact

    def log_artifacts(run: str, folder: str, under: str | None = None) -> None:
        raise MlflowException("Invalid artifact path: 'bad.png'", INVALID_PARAMETER_VALUE)

    def log_artifact(run: str, file: str, under: str | None = None) -> None:
        if file.endswith("bad.png"):
            log_artifacts(run, file)
        original(run, file, under)

    monkeypatch.setattr(client, "log_artifacts", log_artifacts)
    monkeypatch.setattr(client, "log_artifact", log_artifact)
    tracker.close([], "FINISHED", report)
    [study] = read_mlflow().list_runs("study")
    assert study.info.status == "FINISHED"
    assert read_mlflow().list_files(study, "report") == ["report/figures", "report/report.html"]
    assert read_mlflow().list_files(study, "report/figures") == ["report/figures/a.png"]
    assert set(tracker.state().refused) == {"file report/figures/bad.png"}


def test_a_store_that_takes_nothing_is_no_refusal(tracker, plan, monkeypatch):
    tracker.open(plan, [])
    client = tracker.store._client

    def refuse(*words: Any, **named: Any) -> None:
        raise MlflowException("you may not write", INVALID_PARAMETER_VALUE)

    for call in ("log_batch", "set_tag"):
        monkeypatch.setattr(client, call, refuse)
    [run] = [run for run in tracker.store.runs() if run.tags["chip.kind"] == "study"]
    with pytest.raises(UserError, match="you may not write") as told:
        tracker.store.log_points(run, [Point(figures={"a": 1.0, "b": 2.0}, time=None)])
    assert not isinstance(told.value, StoreUnavailable)
    assert tracker.state().refused == {}


def test_a_trial_that_cannot_be_shown_leaves_the_others(
    tracker, workdir, plan, finish_trial, read_mlflow, monkeypatch, caplog
):
    one, other = (
        finish_trial(trial, metrics={"m": m}) for m, trial in enumerate(plan.arms[0].trials)
    )
    original, tries = MlflowStore.log_points, []

    def failing(self: MlflowStore, run: Any, points: Any) -> None:
        if any(point.figures.get("m") == 0 for point in points):
            tries.append(run.id)
            raise StoreRefused("the store says no")
        original(self, run, points)

    monkeypatch.setattr(MlflowStore, "log_points", failing)
    behind = Tracker(tracker)
    behind.first_pause = 0.01
    behind.open(plan, [])
    behind.confirm()
    behind.show(one)
    behind.show(other)
    behind.close([], "FINISHED", None)
    assert read_mlflow().find_trial_run(other.trial).info.status == "FINISHED"
    assert read_mlflow().list_runs("study")[0].info.status == "FINISHED"
    assert len(tries) == 2  # the run might have been gone
    waits = PendingRuns(reason="the store says no", trials=(one.trial.name,), study=False)
    assert behind.state().pending == waits
    assert behind.state().compare is None
    assert behind.state().refused == {}
    [line] = [record.message for record in caplog.records if "says no" in record.message]
    assert line == "the store says no; the study continues, and the rest of it is shown"

    monkeypatch.setattr(MlflowStore, "log_points", original)
    again = InlineTracker(workdir)
    again.open(plan, [one, other])
    assert again.state().pending is None
    assert read_mlflow().find_trial_run(one.trial).data.metrics["m"] == 0.0


def test_a_curve_of_long_names_goes_in_requests_that_are_small_enough(workdir, monkeypatch):
    store = MlflowStore(workdir)
    store.open("curves")
    run = store.create_run({"mlflow.runName": "long"})
    original, sizes = store._client.log_batch, []

    def log_batch(run_id: str, metrics: Any = (), tags: Any = ()) -> None:
        sizes.append(sum(len(m.key.encode("unicode_escape")) + 90 for m in metrics))
        original(run_id, metrics=metrics, tags=tags)

    monkeypatch.setattr(store._client, "log_batch", log_batch)
    names = ["train/" + "日" * 200 + str(n) for n in range(20)]  # six bytes a sign: 1,200 a name
    store.log_points(
        run,
        (
            Point(step=step, time=step / 1000, figures=dict.fromkeys(names, float(step)))
            for step in range(1, 51)
        ),
    )
    # 50 steps × 20 names × about 1,300 bytes = 1.3 MB, of which a server takes 1 MB at once
    assert len(sizes) == 2
    assert max(sizes) < 1_000_000
    assert [len(store._client.get_metric_history(run.id, n)) for n in names[:2]] == [50] * 2


def test_a_curves_true_names_are_there_although_they_were_lost_once(
    tracker, plan, write_attempt, read_mlflow, monkeypatch
):
    trial = plan.arms[0].trials[0]
    folder = write_attempt(trial, steps=1)
    point = {"step": 2, "time": 1002.0, "figures": {"right@1": 1.0}}
    with (folder / "curves.jsonl").open("a") as file:
        file.write(json.dumps(point) + "\n")
    tracker.open(plan, [])
    with monkeypatch.context() as lost:
        original = tracker.store._client.log_batch

        def log_batch(run_id: str, tags: Any = (), **entities: Any) -> None:
            if any(tag.value == "train/right@1" for tag in tags):
                raise ConnectionError("no answer")
            original(run_id, tags=tags, **entities)

        lost.setattr(tracker.store._client, "log_batch", log_batch)
        with pytest.raises(StoreUnavailable):
            tracker.show(make_running_view(trial, [folder]))
    tracker.show(make_running_view(trial, [folder]))
    name = encode_name("train/right@1")
    data = read_mlflow().find_trial_run(trial).data
    assert (data.metrics[name], data.tags[f"chip.name.{name[-16:]}"]) == (1.0, "train/right@1")


def test_a_run_name_is_no_longer_than_its_column(tracker, plan, finish_trial, read_mlflow):
    store = tracker.store
    tracker.open(plan, [])
    name = "objective=chip, " * 30
    run = store.create_run({"mlflow.runName": name})
    assert run.tags["mlflow.runName"] == encode_name(name, RUN)
    assert run.tags["chip.name"] == name


def test_the_end_says_what_is_not_taken():
    refused = {f"metric m{n}": "Invalid value" for n in range(5)}
    never = "what MLflow rejects: metric m0, metric m1, metric m2 and 2 more (Invalid value)"
    assert tracking_lines(None, "sync") == ["all tracked"]
    assert tracking_lines(None, "sync", refused) == [
        f"all tracked but {never}: it is in the report"
    ]
    waiting = PendingRuns(reason="no place", trials=("a",), study=False)
    assert tracking_lines(waiting, "sync", refused) == [
        "not tracked yet: 1 trial: no place",
        "send it: sync",
        f"not tracked: {never}: it is in the report",
    ]


def test_sync_shows_the_rest_and_succeeds(tracker, plan, finish_trial, monkeypatch, capsys):
    class Found:
        study, trials, address, refused = "small", 3, "there", {"metric m": "Invalid value"}

    monkeypatch.setattr("orchestrator.runner.sync.find_snapshots", lambda workdir, names: [Found])
    monkeypatch.setattr("orchestrator.runner.sync.sync_study", lambda kept, workdir, tracker: Found)
    monkeypatch.setattr("orchestrator.tracking.attachments.reattach_files", lambda *words: None)
    assert run_program("sync") == 0
    assert "small: all tracked but what MLflow rejects: metric m" in capsys.readouterr().out
