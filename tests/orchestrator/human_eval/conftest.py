"""A study of two arms whose answers are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from chip_core.results import Evaluation, TrialResult
from chip_core.utils.files import write_json
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.load import load_study

STUDY = """
study: small
question: Which?
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0, 1]
baseline: {objective: dpo}
benchmarks:
  report: [shapes]
"""

Answers = Mapping[str, str]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def plan(study: Path) -> Plan:
    return make_plan(load_study(study))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def write_answers(workdir: Path) -> Callable[..., Ledger]:
    """Leave what trials leave: answers by arm and seed, and what each item's `hal` is."""

    def leave(
        plan: Plan,
        answers: Callable[[str, int], Answers],
        hal: Callable[[str, int], Mapping[str, float]] | None = None,
    ) -> Ledger:
        ledger = Ledger(workdir)
        for arm in plan.arms:
            for trial in arm.trials:
                assert trial.seed is not None
                folder = workdir / "trials" / trial.fingerprint[:16] / "attempt-1"
                (folder / "responses").mkdir(parents=True)
                rows = [
                    {"item": item, "prompt": "what is there?", "response": text, "truth": ""}
                    for item, text in answers(arm.name, trial.seed).items()
                ]
                responses = folder / "responses" / "report-shapes.jsonl"
                responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
                outcomes = [
                    {"item": item, "numerator": value, "denominator": 1.0, "group": ""}
                    for item, value in (hal(arm.name, trial.seed) if hal else {}).items()
                ]
                scores = {
                    "metrics": [
                        {"name": "chair_i", "value": 1.0, "items": []},
                        {"name": "hal", "value": 1.0, "items": outcomes},
                    ]
                }
                write_json(folder / "scores" / "report-shapes.json", scores)
                evaluation = Evaluation(
                    metrics={"shapes/chair_i": 1.0, "shapes/hal": 1.0},
                    items=len(rows),
                    scores="scores/report-shapes.json",
                    responses="responses/report-shapes.jsonl",
                )
                result = TrialResult(steps=1, evaluations={"report/shapes": evaluation}, seconds={})
                ledger.record_result(
                    trial, plan.study.name, 1, str(folder.relative_to(workdir)), result
                )
        return ledger

    return leave
