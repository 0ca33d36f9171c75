"""What fits a budget, and that the rest is missing and said to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chip_core.utils.errors import ConfigError, UserError
from orchestrator.cost.budget import TrimmedPlan, trim_plan
from orchestrator.cost.estimate import Estimate, Prices, estimate_workload
from orchestrator.cost.workload import build_workload
from orchestrator.plan.plan import Plan
from orchestrator.run import run_study
from orchestrator.state.ledger import Ledger
from orchestrator.study.limits import Budget

from ..fakes import FakeExecutor, FakeTracker
from .conftest import SHORT, STUDY, make_rates

#: A trial is its 10 steps of a second.
RATES = {"imports": 0, "model": 0, "row": 0, "setup": 0, "step": 1, "answer": 0, "score": 0}


def make_budget(seconds: float) -> Budget:
    return Budget(cpu_hours=seconds / 3600)


@pytest.fixture
def trim(tmp_path: Path) -> Callable[..., TrimmedPlan]:
    """Trim a plan, whose every trial takes 10 s."""

    def trim(plan: Plan, budget: Budget, **rates: float) -> TrimmedPlan:
        ledger = Ledger(tmp_path)

        def estimated(part: Plan) -> Estimate:
            work = build_workload(part, ledger, tmp_path)
            return estimate_workload(work, make_rates(**(rates or RATES)), at_once=1)

        return trim_plan(plan, budget, estimated, Prices(), ledger)

    return trim


def test_a_plan_that_fits_is_kept_whole(small_plan: Plan, trim: Callable[..., TrimmedPlan]) -> None:
    found = trim(small_plan, make_budget(120))  # 12 trials
    assert found.plan is small_plan
    assert not found.trials
    assert "everything fits" in found.sentence


def test_the_last_seeds_go_first(small_plan: Plan, trim: Callable[..., TrimmedPlan]) -> None:
    found = trim(small_plan, make_budget(119))
    assert (found.seeds, found.arms, len(found.trials)) == ((2,), (), 4)
    assert [len(arm.trials) for arm in found.plan.arms] == [2, 2, 2, 2]
    assert found.takes["cpu_hours"] == pytest.approx(80 / 3600)
    assert "seed 2 of every arm: 4 trials" in found.sentence


def test_the_last_arms_go_once_two_seeds_are_left(
    small_plan: Plan, trim: Callable[..., TrimmedPlan]
) -> None:
    found = trim(small_plan, make_budget(79))  # three arms take 60 s
    assert found.arms == ("chip, 1e-6",)
    assert len(found.trials) == 12 - 6
    assert [arm.name for arm in found.plan.arms] == ["dpo, 1e-5", "dpo, 1e-6", "chip, 1e-5"]


def test_the_baseline_is_never_left_out(
    plan_of: Callable[..., Plan], trim: Callable[..., TrimmedPlan]
) -> None:
    last = STUDY.replace(
        "{objective: dpo, optimizer.lr: 1e-5}", "{objective: chip, optimizer.lr: 1e-6}"
    )
    found = trim(plan_of(last, overrides=SHORT), make_budget(40))
    assert [arm.name for arm in found.plan.arms] == ["dpo, 1e-5", "chip, 1e-6"]
    assert found.plan.baseline.name == "chip, 1e-6"


def test_less_than_a_comparison_is_refused(
    small_plan: Plan, trim: Callable[..., TrimmedPlan]
) -> None:
    with pytest.raises(UserError, match="too small: the baseline and one arm with 2 seeds take"):
        trim(small_plan, make_budget(39))


@pytest.mark.parametrize(
    ("budget", "rates", "why"),
    [
        (make_budget(1), {"imports": 0.0}, "is unknown .*--calibrate"),
        (Budget(price=1), RATES, "no price is given.*--price-per-gpu-hour"),
    ],
)
def test_an_unknown_cost_is_not_held_against_a_budget(
    small_plan: Plan,
    trim: Callable[..., TrimmedPlan],
    budget: Budget,
    rates: dict[str, float],
    why: str,
) -> None:
    with pytest.raises(UserError, match=why):
        trim(small_plan, budget, **rates)


def test_the_study_file_has_a_budget(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(STUDY + "budget: {hours: 2, price: 30}\n", overrides=SHORT)
    assert plan.study.budget == Budget(hours=2, price=30)
    without = plan_of(STUDY, overrides=SHORT)
    assert [trial.fingerprint for trial in plan.trials] == [
        trial.fingerprint for trial in without.trials
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{hour: 2}", "budget.hour: unknown key: did you mean 'hours'"),
        ("{}", "budget: sets no bound: give hours"),
        ("{hours: 0}", "budget.hours: input should be greater than 0"),
    ],
)
def test_a_wrong_budget_is_told(plan_of: Callable[..., Plan], text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plan_of(STUDY + f"budget: {text}\n")


@pytest.mark.usefixtures("blank_figures")
def test_what_is_left_out_is_missing_and_said(
    small_plan: Plan, trim: Callable[..., TrimmedPlan], tmp_path: Path
) -> None:
    def run(part: TrimmedPlan | None) -> tuple[FakeExecutor, str, FakeTracker]:
        executor, tracker = FakeExecutor(), FakeTracker()
        outcome = run_study(
            small_plan,
            workdir=tmp_path,
            executor=lambda: executor,
            tracker=tracker,
            console=Console(quiet=True),
            trimmed=part,
        )
        missing = [name for name in outcome.summary.missing if "(missing)" in name]
        assert len(missing) == (0 if part is None else 4)
        return (
            executor,
            (tmp_path / "studies" / small_plan.study.name / "report/report.md").read_text(),
            tracker,
        )

    executor, report, _ = run(trim(small_plan, make_budget(100)))
    assert len(executor.names) == 1 + 8
    assert not any(name.endswith("seed 2") for name in executor.names)
    assert "Left out for the budget" in report
    assert "seed 2 of every arm: 4 trials" in report
    # What is done costs nothing: 4 trials are left, and 30 s do for three of them. The seed is
    # left out whole.
    again = trim(small_plan, make_budget(30))
    assert (again.needed, again.takes) == (
        {"cpu_hours": pytest.approx(40 / 3600)},
        {"cpu_hours": 0},
    )
    executor, report, tracker = run(again)
    assert executor.names == []
    assert len(tracker.opened) == 9  # those that are done, and no other
    # Without a budget the rest is run, and nothing is said any more.
    executor, report, _ = run(None)
    assert len(executor.names) == 4
    assert "Left out" not in report


def test_a_trimmed_plan_is_of_the_same_study(
    small_plan: Plan, trim: Callable[..., TrimmedPlan]
) -> None:
    found = trim(small_plan, make_budget(80))
    assert replace(found.plan, arms=small_plan.arms) == small_plan
