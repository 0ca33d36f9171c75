"""An arm equal to the baseline but for its seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.utils.errors import ConfigError
from orchestrator.plan.plan import Plan
from orchestrator.state.compare import compare_plans
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import plan_searches, resolve_search
from orchestrator.tracking.runs import arm_key

from ..conftest import STUDY
from ..tuned_study import STUDY as TUNED
from ..tuned_study import make_result_function, run_missing_trials

PlanOf = Callable[..., Plan]
PLACEBO = "\nplacebo: true\n"


def list_fingerprints(plan: Plan) -> set[str]:
    return {trial.fingerprint for trial in plan.trials}


def test_a_placebo_is_the_baseline_with_seeds_of_its_own(plan_of: PlanOf) -> None:
    plan = plan_of(STUDY + PLACEBO)
    *others, placebo = plan.arms
    assert placebo.name == "placebo" and placebo.placebo and not placebo.baseline
    assert placebo.cells == () and plan.compared_arms == tuple(others)
    assert [trial.seed for trial in placebo.trials] == [1_000_000, 1_000_001]
    for own, theirs in zip(placebo.trials, plan.baseline.trials, strict=True):
        assert own.config.model_copy(update={"seed": theirs.seed}) == theirs.config
        assert own.evaluations == theirs.evaluations and own.params == theirs.params
    assert len({arm_key(arm) for arm in plan.arms}) == 5


def test_it_changes_no_other_trial_and_grows_with_the_seeds(plan_of: PlanOf) -> None:
    without, small = plan_of(), plan_of(STUDY + PLACEBO)
    large = plan_of(STUDY + PLACEBO, seeds=[2, 999_999])
    assert list_fingerprints(without) < list_fingerprints(small) < list_fingerprints(large)
    seeds = [trial.seed for trial in large.arms[-1].trials]
    assert seeds == [1_000_000, 1_000_001, 1_000_002, 1_999_999]
    # it is a plain trial: another study's arm with that seed is the same
    same = plan_of(STUDY, seeds=[1_000_000]).baseline.trials[-1]
    assert same.fingerprint == small.arms[-1].trials[0].fingerprint


def test_seeds_that_its_own_could_meet_are_refused(plan_of: PlanOf) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(STUDY + PLACEBO, seeds=[1_000_001])
    (line,) = refused.value.problems
    assert line.endswith(
        "placebo: its seeds start at 1,000,000: use seeds below that, not 1,000,001"
    )


def test_an_arm_of_its_name_is_refused(plan_of: PlanOf) -> None:
    text = STUDY.replace("vision_encoder: [frozen, trained]", "").replace(
        "objective: [dpo, chip]", "arms: {plain: {objective: dpo}, placebo: {objective: chip}}"
    )
    text = text.replace("{objective: dpo, vision_encoder: frozen}", "{arms: plain}")
    with pytest.raises(ConfigError, match="placebo: an arm is named 'placebo'"):
        plan_of(text + PLACEBO)


def test_under_a_search_it_takes_what_the_baseline_chose(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = make_result_function(lambda job: abs(job.config.optimizer.lr - 5e-5) * 1e5)
    monkeypatch.setattr("tests.orchestrator.fakes.make_result", best)
    plan = resolve_search(plan_of(TUNED + PLACEBO), Ledger(tmp_path))
    assert [search.arm.name for search in plan_searches(plan)] == ["dpo", "chip"]
    assert all(trial.blocked is not None for trial in plan.arms[-1].trials)
    ended = run_missing_trials(plan, tmp_path)
    placebo = ended.arms[-1]
    assert placebo.tuned == ended.baseline.tuned == {"optimizer.lr": "5e-5"}
    assert {trial.config.optimizer.lr for trial in placebo.trials} == {5e-5}
    assert placebo.name == "placebo" and len(list_fingerprints(ended)) == 1 + 6 + 6


def test_a_search_with_one_of_its_seeds_is_refused(plan_of: PlanOf) -> None:
    text = TUNED.replace("  goal: minimize\n", "  goal: minimize\n  seed: 1000000\n")
    plan_of(text)
    with pytest.raises(ConfigError, match="seed"):
        plan_of(text + PLACEBO)


def test_two_studies_share_the_baseline_and_not_the_placebo(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    plan = plan_of(STUDY + PLACEBO)
    found = compare_plans(plan, plan_of(), Ledger(tmp_path))
    assert ["dpo, frozen", "dpo, frozen"] in [entry["arms"] for entry in found["same"]]
    assert len(found["same"]) == 4 and not found["only_first"]
