"""The searches of a study in MLflow: runs of their own kind, in no arm's aggregates."""

from __future__ import annotations

from collections import Counter

import pytest
from rich.console import Console

from orchestrator.run import run_study

from ..fakes import FakeExecutor, InlineTracker
from ..tuned_study import STUDY

pytestmark = pytest.mark.usefixtures("blank_figures")

SMALL = STUDY.replace("[1e-5, 5e-5, 1e-4]", "[1e-5, 1e-4]").replace("[0, 1]", "[0]")
ALL = {"study": 1, "base": 1, "arm": 2, "search": 4, "trial": 2}


def run(plan, workdir):
    run_study(
        plan,
        workdir=workdir,
        executor=FakeExecutor,
        tracker=InlineTracker(workdir, None),
        console=Console(quiet=True),
    )


def test_search_runs_are_shown_as_what_they_are(plan_of, workdir, read_mlflow, set_trial_metric):
    set_trial_metric(lambda job: job.config.optimizer.lr * 1e5 + job.config.seed % 1000)
    run(plan_of(SMALL), workdir)
    found = read_mlflow("tuned")
    assert found.count_kinds() == ALL
    assert {run.info.status for run in found.runs} == {"FINISHED"}
    arms = {run.info.run_id: run for run in found.list_runs("arm")}
    for search in found.list_runs("search"):
        assert search.data.tags["mlflow.parentRunId"] in arms
        assert search.data.tags["chip.seed"] == "1000"
        won = search.data.params["optimizer.lr"] == "1e-5"
        assert search.data.tags["chip.chosen"] == str(won).lower()
        assert list(search.data.metrics) == ["select/shapes/chair_i", "timing/train"]
    assert Counter(run.data.tags["chip.search"] for run in found.list_runs("search")) == {
        "1": 2,
        "2": 2,
    }
    for arm in arms.values():
        assert arm.data.params["optimizer.lr"] == "1e-5"
        assert arm.data.metrics["shapes/chair_i"] == 1.0  # of the seed alone: 1e-5 * 1e5 + 0
        assert not [name for name in arm.data.metrics if name.startswith("select/")]
    assert {run.data.params["optimizer.lr"] for run in found.list_runs("trial")} == {"1e-5"}


def test_a_rerun_makes_no_run_and_a_new_winner_takes_the_seeds_place(
    plan_of, workdir, read_mlflow, set_trial_metric
):
    set_trial_metric(lambda job: job.config.optimizer.lr * 1e5)
    run(plan_of(SMALL), workdir)
    before = {run.info.run_id for run in read_mlflow("tuned").runs}
    run(plan_of(SMALL), workdir)
    assert {run.info.run_id for run in read_mlflow("tuned").runs} == before
    run(plan_of(SMALL.replace("[1e-5, 1e-4]", "[1e-5, 1e-4, 1e-6]")), workdir)
    found = read_mlflow("tuned")
    assert found.count_kinds() == {
        **ALL, "search": 6, "superseded arm": 2, "superseded trial": 2
    }  # fmt: skip
    assert {run.data.params["optimizer.lr"] for run in found.list_runs("arm")} == {"1e-6"}
    assert {run.data.params["optimizer.lr"] for run in found.list_runs("trial")} == {"1e-6"}
