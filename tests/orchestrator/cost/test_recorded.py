"""What earlier trials tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.results import CONFIG, Evaluation, TrialResult
from chip_core.utils.files import write_json
from orchestrator.cost.kinds import (
    LIVE,
    answer_kind,
    row_kind,
    sampling_kind,
    start_kind,
    training_kind,
)
from orchestrator.cost.rates import RateSource
from orchestrator.cost.recorded import recorded_rates
from orchestrator.plan.plan import Plan
from orchestrator.state.ledger import Ledger

from .conftest import SHORT, STUDY, make_seconds

HERE = "a processor"


def make_result(**changes: Any) -> TrialResult:
    """Make one of 11 steps in 12 s, 2 s until the first; half of the time on the CPU."""
    spent = {"imports": 2.0, "check data": 1.0, "model": 1.0, "train": 12.0}
    spent["score report/shapes"] = 4.0
    how = changes.pop("how", {})
    evaluation = Evaluation(
        metrics={}, items=20, scores="scores/report-shapes.json", responses="", metadata=how
    )
    made: dict[str, Any] = {
        "steps": 11,
        "evaluations": {"report/shapes": evaluation},
        "seconds": {**spent, "first_step": 2.0},
        "cpu": {phase: value / 2 for phase, value in spent.items()},
        "data": {"pairs": 90, "skipped": 10},
        "engine": {"reference": "live", "image_features": "computed"},
        "machine": HERE,
    }
    return TrialResult(**{**made, **changes})


@pytest.fixture
def load_rates(small_plan: Plan, tmp_path: Path) -> Callable[..., RateSource | None]:
    """What a ledger with these results of the first trials tells."""

    def record(
        *results: TrialResult, here: set[str] | None = frozenset({HERE})
    ) -> RateSource | None:  # type: ignore[assignment]
        ledger = Ledger(tmp_path)
        for trial, each in zip(small_plan.trials[1:], results, strict=False):
            ledger.record_result(trial, "small", 1, f"trials/{trial.fingerprint}", each)
        return recorded_rates(small_plan, ledger, tmp_path, here)

    return record


def test_rounds_tell_what_an_answer_took_and_each_trainings_setup(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = plan_of(STUDY, overrides={**SHORT, "pairs.rounds": 2})
    phases = {"imports": 2.0, "model": 1.0, "sample pairs": 8.0, "train": 24.0}
    made = make_result(
        steps=22,
        seconds={**phases, "first_step": 2.0},
        cpu={phase: value / 2 for phase, value in phases.items()},
        data={"pairs": 90, "skipped": 0, "sampled": 40},
    )
    ledger, trial = Ledger(tmp_path), plan.trials[1]
    ledger.record_result(trial, "small", 1, f"trials/{trial.fingerprint}", made)
    found = recorded_rates(plan, ledger, tmp_path, {HERE})
    assert found is not None and not found.sizes  # its pairs are not the data's rows
    assert found.rates["answer", sampling_kind(trial.config)] == make_seconds(0.2, 0.1)
    kind = training_kind(trial.config, LIVE, features=False)
    # (24 - 2·2) / (22 - 2) a step, and of the other 2 s a half each.
    assert found.rates["step", kind] == make_seconds(1.0, 0.5)
    assert found.rates["setup", kind].wall == pytest.approx(1.0)


def test_phases_as_rates(small_plan: Plan, load_rates: Callable[..., RateSource | None]) -> None:
    found = load_rates(make_result())
    assert found is not None
    assert found.name == "1 earlier trial on a processor"
    config = small_plan.trials[1].config
    kind = training_kind(config, LIVE, features=False)
    assert found.rates["step", kind] == make_seconds(1, 0.5)  # (12 − 2) / 10
    # 12 − 11 seconds.
    assert found.rates["setup", kind] == make_seconds(pytest.approx(1), pytest.approx(0.5))
    assert found.rates["row", row_kind(config)] == make_seconds(0.01, 0.005)
    assert found.rates["model", start_kind(config)] == make_seconds(1, 0.5)
    answer = found.rates["answer", answer_kind(config, config.benchmarks.report[0])]
    assert answer == make_seconds(0.2, 0.1)


def test_the_middle_of_several(
    small_plan: Plan, load_rates: Callable[..., RateSource | None]
) -> None:
    slow = make_result(seconds={**make_result().seconds, "model": 9.0})
    found = load_rates(make_result(), slow, make_result())
    assert found is not None
    assert found.name.startswith("3 earlier trials")
    assert found.rates["model", start_kind(small_plan.trials[1].config)].wall == 1


def test_resumed_and_taken_over_results_give_no_rate(
    small_plan: Plan, load_rates: Callable[..., RateSource | None]
) -> None:
    kind = training_kind(small_plan.trials[1].config, LIVE, features=False)
    found = load_rates(make_result(notes=["resumed after step 3 from x"], how={"taken_over": 5}))
    assert found is not None
    assert ("step", kind) not in found.rates
    assert not any(quantity == "answer" for quantity, _ in found.rates)


def test_other_machines_and_versions_tell_nothing(
    load_rates: Callable[..., RateSource | None],
) -> None:
    assert load_rates(make_result(machine="")) is None
    assert load_rates(make_result(machine="another")) is None


def test_where_none_is_here_any_machine_tells(load_rates: Callable[..., RateSource | None]) -> None:
    found = load_rates(make_result(machine="a GPU"), here=None)
    assert found is not None
    assert found.name == "1 earlier trial on a GPU"


def test_another_studys_trials_tell_by_their_folder(
    small_plan: Plan, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    other = plan_of(STUDY.replace("study: small", "study: other"), overrides=SHORT, seeds=[7])
    ledger, trial = Ledger(tmp_path), other.trials[1]
    write_json(tmp_path / "trials/x" / CONFIG, trial.config.model_dump(mode="json"))
    ledger.record_result(trial, "other", 1, "trials/x", make_result())
    found = recorded_rates(small_plan, ledger, tmp_path, {HERE})
    assert found is not None
    kind = training_kind(small_plan.trials[1].config, LIVE, features=False)
    assert found.rates["step", kind].wall == 1
