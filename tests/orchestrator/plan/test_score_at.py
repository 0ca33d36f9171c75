"""Trainings that are scored on their way: what decides them, what they cost, a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chip_core.utils.errors import ConfigError
from orchestrator.cost.workload import build_workload
from orchestrator.executors.inline import InlineExecutor
from orchestrator.plan.plan import Plan
from orchestrator.report.writers.plan import evaluation_lines
from orchestrator.run import run_study
from orchestrator.state.ledger import Ledger

from ..conftest import SHORT, STUDY, TINY
from ..fakes import FakeTracker
from ..tuned_study import STUDY as TUNED

PlanOf = Callable[..., Plan]
BOTH = STUDY.replace("report: [shapes]", "report: [shapes]\n  select: [shapes]")
BEST = {"training.pick": {"rule": "best", "metric": "select/shapes/chair_i"}}
SCORED: dict[str, Any] = {"training.score_at": [0.5], **BEST}


def list_fingerprints(plan: Plan) -> set[str]:
    return {trial.fingerprint for arm in plan.arms for trial in arm.trials}


def test_what_select_asks_decides_a_training_that_it_picks(plan_of: PlanOf) -> None:
    scored = list_fingerprints(plan_of(BOTH, overrides=SCORED))
    assert not scored & list_fingerprints(plan_of(BOTH))
    limited = BOTH.replace("select: [shapes]", "select: [{name: shapes, limit: 9}]")
    assert not scored & list_fingerprints(plan_of(limited, overrides=SCORED))
    # Where nothing picks.
    assert list_fingerprints(plan_of(limited)) == list_fingerprints(plan_of(BOTH))
    quoted = BOTH.replace("report: [shapes]", "report: [{name: shapes, limit: 9}]")
    assert list_fingerprints(plan_of(quoted, overrides=SCORED)) == scored


def test_which_engine_answers_later_picks_nothing(plan_of: PlanOf) -> None:
    served = "{kind: openai, server: vllm, version: '1', base_url: 'http://127.0.0.1:8000/v1'}"
    by_vllm = plan_of(f"{BOTH}\nevaluation: {{generator: {served}}}\n", overrides=SCORED)
    plain = plan_of(BOTH, overrides=SCORED)
    assert list_fingerprints(by_vllm) == list_fingerprints(plain)
    assert by_vllm.base.evaluations != plain.base.evaluations


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        (STUDY, SCORED, "training.score_at: there is no benchmark under `select` to score with"),
        (
            BOTH,
            {**SCORED, "training.pick": {"rule": "best", "metric": "shapes/chair_i"}},
            "training.pick.metric: unknown metric 'shapes/chair_i', or not under `select`",
        ),
        (TUNED, SCORED, "training.score_at: a search (`tune`) compares finished trainings"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    plan_of: PlanOf, text: str, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(text, overrides=overrides)
    (line,) = refused.value.problems
    assert said in line and "study.yaml: " in line


def test_every_share_asks_select_once_more(plan_of: PlanOf, tmp_path: Path) -> None:
    def asked(overrides: dict[str, Any]) -> dict[str, int]:
        plan = plan_of(BOTH, overrides=overrides)
        found = build_workload(plan, Ledger(tmp_path), tmp_path)
        trained = next(each for each in found.trials if each.training is not None)
        # The first trial is the untrained model.
        assert all(one.times == 1 for one in found.trials[0].questions.values())
        times = {key: one.times for key, one in trained.questions.items()}
        # 500 and 1,000 questions; the untrained model, and 4 arms of 2 seeds
        made = 1500 + 8 * (500 * times["select/shapes"] + 1000 * times["report/shapes"])
        (line, *_) = evaluation_lines(plan, Ledger(tmp_path))
        assert f"; {made:,} answers to generate" in line.plain
        return times

    assert asked({}) == {"select/shapes": 1, "report/shapes": 1}
    three = {"training.score_at": [0.25, 0.5]}
    assert asked(three) == {"select/shapes": 3, "report/shapes": 1}
    constraint = {"metric": "select/shapes/cover", "max_drop": 1.0}
    kept = {**three, "training.pick": {**BEST["training.pick"], "constraint": constraint}}
    assert asked(kept) == {"select/shapes": 4, "report/shapes": 1}


def test_a_run_shows_which_checkpoint_answered_report(plan_of: PlanOf, tmp_path: Path) -> None:
    text = TINY + "  select: [{name: shapes, limit: 2, max_new_tokens: 2}]\n"
    text += "primary: {metric: shapes/chair_i, goal: minimize}\n"
    hal = {"rule": "best", "metric": "select/shapes/hal"}  # two tokens name nothing: no chair_i
    plan = plan_of(text, overrides={**SHORT, **SCORED, "training.pick": hal})
    tracker = FakeTracker()

    def run() -> Any:
        return run_study(
            plan,
            workdir=tmp_path,
            executor=InlineExecutor,
            tracker=tracker,
            console=Console(quiet=True),
        )

    assert not run().failed
    trial = plan.arms[0].trials[0]
    record = Ledger(tmp_path)[trial.fingerprint]
    assert [point["step"] for point in record.picked["points"]] == [2, 4]
    (view,) = [view for view in tracker.ended if view.trial == trial]
    assert list(view.checkpoints) == [2, 4]
    page = (tmp_path / "studies" / plan.study.name / "report/report.md").read_text(encoding="utf-8")
    assert "Hallucination along the training" in page
    assert f"{record.picked['step']} of 4" in page and "figures/checkpoints.png" in page
    assert run().executed == 0
