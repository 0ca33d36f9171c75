"""show: all of one trial. diff: two studies beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.results import CONFIG
from chip_core.utils.errors import UserError
from chip_core.utils.files import write_json
from orchestrator.plan.plan import Plan
from orchestrator.plan.snapshot import iter_plan_snapshots
from orchestrator.report.trial_facts import collect_trial_facts
from orchestrator.state.compare import compare_plans
from orchestrator.state.ledger import Ledger
from orchestrator.state.trial_lookup import find_trial
from orchestrator.utils.version import code_version

from ..conftest import STUDY
from ..fakes import FakeExecutor, run_with_fakes
from ..program import run_program

PlanOf = Callable[..., Plan]

pytestmark = pytest.mark.usefixtures("blank_figures")
OTHER = STUDY.replace("study: small", "study: other").replace("[dpo, chip]", "[dpo, hdpo]")


def run(plan: Plan, workdir: Path, **failures: str) -> None:
    run_with_fakes(plan, workdir, FakeExecutor(failures=failures))


@pytest.fixture
def finished_study(plan_of: PlanOf, tmp_path: Path) -> tuple[Path, Plan]:
    plan = plan_of()
    run(plan, tmp_path / "runs")
    return tmp_path / "runs", plan


def test_show_tells_all_of_a_trial(
    finished_study: tuple[Path, Plan], plan_of: PlanOf, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, plan = finished_study
    trial = plan.arms[2].trials[1]
    folder = workdir / "trials" / trial.fingerprint[:16] / "attempt-1"
    write_json(folder / CONFIG, trial.config.model_dump(mode="json"))
    run(plan_of(STUDY.replace("study: small", "study: renamed")), workdir)
    assert run_program("show", trial.fingerprint[:6], "--workdir", workdir, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fingerprint"] == trial.fingerprint
    assert (found["arm"], found["seed"], found["executed_for"]) == ("chip, frozen", 1, "small")
    assert [entry["study"] for entry in found["studies"]] == ["renamed", "small"]
    assert found["figures"] == {"shapes/chair_i": 9.0}  # 10 + seed 1 − 2 under chip
    assert found["evaluations"][0]["scores"] == str(folder / "scores/report-shapes.json")
    assert found["model"] == {"content": "the model"}
    assert found["data"] == dict(plan.identity(trial.config.data))
    assert found["config"]["objective"]["preset"] == "chip"
    assert found["config"]["seed"] == 1
    assert found["trained_model"] == str(folder / "model")
    (attempt,) = found["attempts"]
    assert (attempt["number"], attempt["outcome"]) == (1, "finished")
    assert attempt["version"] == code_version().version
    assert attempt["started"] <= attempt["ended"]
    assert attempt["files"] == [str(folder / CONFIG)]


def test_show_for_people(
    finished_study: tuple[Path, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, plan = finished_study
    assert run_program("show", "chip, frozen, seed 1", "--workdir", workdir) == 0
    printed = capsys.readouterr().out
    assert plan.arms[2].trials[1].fingerprint in printed
    assert "shapes/chair_i = 9.0000" in printed
    assert f"in study small ({plan.study.source}) as chip, frozen, which it was run for" in printed
    assert run_program("show", "base", "--workdir", workdir) == 0
    assert "shapes/chair_i = 30.0000" in capsys.readouterr().out


def test_show_has_a_failure_and_its_reason(plan_of: PlanOf, tmp_path: Path) -> None:
    plan = plan_of()
    run(plan, tmp_path, **{"dpo, frozen, seed 0": "no memory"})
    found = collect_trial_facts(tmp_path, find_trial(tmp_path, "dpo, frozen, seed 0"))
    assert (found["failure"], found["figures"], found["config"]) == ("no memory", {}, None)
    (attempt,) = found["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("failed", "no memory")


def test_which_trial_is_meant(finished_study: tuple[Path, Plan], tmp_path: Path) -> None:
    workdir, plan = finished_study
    mark = plan.trials[3].fingerprint
    assert find_trial(workdir, mark[:8].upper()) == mark
    for name, expected in (
        ("chip, frozn, seed 0", "did you mean 'chip, frozen, seed 0'?"),
        (mark[:3], f"no trial '{mark[:3]}'"),  # three digits name nothing
    ):
        with pytest.raises(UserError, match=expected):
            find_trial(workdir, name)
    with pytest.raises(UserError, match="run a study first"):
        find_trial(tmp_path / "nowhere", "base")


def test_a_plan_is_kept_with_what_its_fingerprints_hold(finished_study: tuple[Path, Plan]) -> None:
    workdir, plan = finished_study
    (kept,) = iter_plan_snapshots(workdir)
    assert (kept.study, kept.file) == ("small", plan.study.source)
    assert {mark: (one.arm, one.seed) for mark, one in kept.trials.items()} == {
        trial.fingerprint: (trial.arm, trial.seed) for trial in plan.trials
    }
    (workdir / "studies/small/plan.json").unlink()  # of a version that did not keep it
    (from_report,) = iter_plan_snapshots(workdir)
    assert from_report.trials == kept.trials
    assert (from_report.study, from_report.file) == (kept.study, kept.file)


def test_diff_of_two_studies(finished_study: tuple[Path, Plan], plan_of: PlanOf) -> None:
    workdir, plan = finished_study
    other = plan_of(OTHER.replace("seeds: [0, 1]", "seeds: [1, 2]"))
    found = compare_plans(plan, other, Ledger(workdir))
    assert found["studies"] == ["small", "other"]
    assert [entry["arms"] for entry in found["same"]] == [
        ["dpo, frozen", "dpo, frozen"], ["dpo, trained", "dpo, trained"],
    ]  # fmt: skip
    assert found["changed"] == []
    assert found["only_first"] == ["chip, frozen", "chip, trained"]
    assert found["only_second"] == ["hdpo, frozen", "hdpo, trained"]
    assert found["recipe_keys"] == {}
    assert found["study_keys"]["seeds"] == [[0, 1], [1, 2]]
    assert set(found["study_keys"]) == {"seeds", "factors"}
    shared = [(entry["trial"], entry["figures"]) for entry in found["shared_figures"]]
    assert shared == [
        ("base", {"shapes/chair_i": 30.0}),
        ("dpo, frozen, seed 1", {"shapes/chair_i": 11.0}),
        ("dpo, trained, seed 1", {"shapes/chair_i": 11.0}),
    ]


def test_diff_names_the_keys_by_which_a_cell_differs(plan_of: PlanOf, tmp_path: Path) -> None:
    one = plan_of()
    other = plan_of(STUDY, overrides={"optimizer.lr": 1e-6, "engine.micro_batch": 2})
    found = compare_plans(one, other, Ledger(tmp_path))
    keys: dict[str, Any] = {"optimizer.lr": [5e-5, 1e-6], "engine.micro_batch": [16, 2]}
    assert found["recipe_keys"] == keys
    assert len(found["changed"]) == 4
    assert found["changed"][0] == {"arms": ["dpo, frozen", "dpo, frozen"], "keys": keys}
    assert found["only_first"] == found["only_second"] == found["same"] == []
    assert found["shared_figures"] == []


def test_the_same_training_under_another_name(plan_of: PlanOf, tmp_path: Path) -> None:
    named = STUDY.replace("objective: [dpo, chip]", "loss: {plain: {objective: dpo}, "
        "whole: {objective: chip}}").replace("objective: dpo", "loss: plain", 2).replace(
        "plain: {loss: plain}", "plain: {objective: dpo}")  # fmt: skip
    found = compare_plans(plan_of(), plan_of(named), Ledger(tmp_path))
    assert found["same"][0] == {"arms": ["dpo, frozen", "plain, frozen"]}
    assert len(found["same"]) == 4


def test_the_diff_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("diff", "encoder", "objectives", "--workdir", tmp_path)
    assert run_program(*arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["only_second"] == ["cmdpo", "hdpo"]
    assert run_program(*arguments) == 0
    printed = capsys.readouterr().out
    assert "the same training: 2: dpo, frozen = dpo; chip, frozen = chip" in printed
    assert "only in objectives: 2: cmdpo; hdpo" in printed
    assert "recorded figures in both reports: none" in printed
    assert run_program("diff", "encoder", "encoder", "--set", "optimizer.lr=1e-6") == 0
    assert "optimizer.lr: 5e-5 → 1e-6" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []  # looking writes nothing
