"""A plan says in red, and as JSON, which code a study runs and where it sends keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.report.writers.plan import plan_lines, plan_to_json, trust_warning_lines
from orchestrator.study.model import Study

from ...conftest import STUDY

COMMIT = "0123456789" * 4
OWN = f"{{path: owner/name, trust_remote_code: true, revision: '{COMMIT}'}}"
JUDGED = "[{name: mmhal, judge: {model: m, base_url: 'https://judge.example/v1'}}]"


def test_a_plain_study_trusts_nothing(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    assert plan_to_json(plan_of(), tmp_path)["trusted"] == []
    assert list(trust_warning_lines(plan_of())) == []


def test_a_model_s_own_code(load: Callable[..., Study], tmp_path: Path) -> None:
    text = STUDY.replace(
        "  vision_encoder: [frozen, trained]", f"  model: [shapes, {OWN}]"
    ).replace("vision_encoder: frozen", "model: shapes")
    plan = make_plan(load(text), lambda model: {"content": model.path})
    assert plan_to_json(plan, tmp_path)["trusted"] == [
        {"kind": "remote code", "what": "owner/name"}
    ]
    (line,) = trust_warning_lines(plan)
    assert line.plain == (
        "trusted: code that comes with the model owner/name is run, with all your rights"
    )
    assert line.style == "bold red"
    assert line in list(plan_lines(plan, tmp_path))


def test_a_judge_elsewhere_and_its_key(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    text = STUDY.replace("[shapes]", JUDGED).replace("shapes/chair_i", "mmhal/score")
    plan = plan_of(text.replace("goal: minimize", "goal: maximize"))
    (line,) = trust_warning_lines(plan)
    assert line.plain == (
        "trusted: https://judge.example/v1 is sent the answers to mmhal and the key in "
        "OPENAI_API_KEY"
    )
    (held,) = plan_to_json(plan, tmp_path)["trusted"]
    assert held == {"kind": "judge", "what": "https://judge.example/v1"}


def test_a_plug_in(
    load: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_trusted.py").write_text(
        "def term(margins):\n    return margins.sum()\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "{preset: dpo, custom: {'mine_of_trusted:term': 1.0}}"
    text = STUDY.replace("[dpo, chip]", f"{{plain: {{objective: dpo}}, own: {{objective: {own}}}}}")
    plan = make_plan(
        load(text.replace("objective: dpo, vision", "objective: plain, vision")),
        lambda model: {"content": "x"},
    )
    (held,) = plan_to_json(plan, tmp_path)["trusted"]
    assert held == {"kind": "plug-in", "what": "mine_of_trusted:term"}


def test_what_ranks_a_model_s_own_answers(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ranks_of_trusted.py").write_text("def rank(prompt, answers): ...\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {"pairs.rounds": 1, "pairs.ranker": "ranks_of_trusted:rank"}
    (line,) = trust_warning_lines(plan_of(STUDY, overrides=own))
    assert "ranks_of_trusted:rank is run, with all your rights" in line.plain
    judge = {"model": "m", "base_url": "https://judge.example/v1", "api_key_env": "MINE"}
    judged = {"pairs.rounds": 1, "pairs.ranker": "judge", "pairs.judge": judge}
    (line,) = trust_warning_lines(plan_of(STUDY, overrides=judged))
    assert line.plain == (
        "trusted: https://judge.example/v1 is sent the data's prompts and pictures and the "
        "model's answers and the key in MINE"
    )
    unused = {**own, "pairs.rounds": 0}
    assert list(trust_warning_lines(plan_of(STUDY, overrides=unused))) == []
