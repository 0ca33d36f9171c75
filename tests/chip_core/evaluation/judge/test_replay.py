"""Replies of a judge that were collected before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.scorer import JudgeRequest
from chip_core.utils.errors import UserError


def ask_items(judge: ReplayJudge, *items: str) -> list[str | None]:
    return list(judge.ask([JudgeRequest(item=item, messages=()) for item in items]))


def test_each_item_gets_its_replies_in_turn() -> None:
    judge = ReplayJudge([("a", "1"), ("b", None), ("a", "2")])
    assert ask_items(judge, "a", "b", "a", "a", "c") == ["1", None, "2", "2", None]
    assert ask_items(judge, "a") == ["1"]  # a new question to the judge begins anew


def test_rows_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    rows = [{"image_id": 5, "reply": "x"}, {"item": "a", "reply": None}, {"id": 7, "reply": ""}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ask_items(ReplayJudge.from_file(file), "5", "a", "7") == ["x", None, ""]
    file.write_text('{"image_id": 5}\n')
    with pytest.raises(UserError, match="row 1: there is no reply"):
        ReplayJudge.from_file(file)
