"""Results lie in files as earlier versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from chip_core.results import (
    ANSWERED,
    RESULT,
    AnsweredTrial,
    Answers,
    Evaluation,
    TrialResult,
    read_answered,
    read_result,
    write_answered,
    write_result,
)

FOUND = Evaluation(metrics={"a/b": 1.0}, items=2, scores="s", responses="r", metadata={"n": 2})


def test_metadata_is_how_in_files(tmp_path: Path) -> None:
    result = TrialResult(steps=1, evaluations={"report/a": FOUND}, seconds={})
    write_result(tmp_path, result)
    raw = json.loads((tmp_path / RESULT).read_text())
    assert list(raw["evaluations"]["report/a"]) == [
        "metrics",
        "items",
        "scores",
        "responses",
        "how",
    ]
    assert raw["evaluations"]["report/a"]["how"] == {"n": 2}
    assert read_result(tmp_path) == result
    answers = {"report/c": Answers(items=3, responses="r", metadata={"notes": ["x"]})}
    answered = AnsweredTrial(
        steps=1, answers=answers, evaluations={"report/a": FOUND}, seconds={}, files={}
    )
    write_answered(tmp_path, answered)
    raw = json.loads((tmp_path / ANSWERED).read_text())
    assert list(raw["answers"]["report/c"]) == ["items", "responses", "how"]
    assert raw["evaluations"]["report/a"]["how"] == {"n": 2}
    assert read_answered(tmp_path) == answered
