"""What judges cost, before they are asked: calls, tokens and price, each with its arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.evaluation.benchmarks.mmhal.score import PROMPT
from orchestrator.cli import main
from orchestrator.cost.judges import JudgeTokens, _benchmark_tokens, estimate_judge_costs
from orchestrator.cost.workload import BenchmarkQuestions

STUDY = """
study: judged
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0, 1]
baseline: {objective: dpo}
benchmarks:
  report: [{name: mmhal, max_new_tokens: 100, judge: {model: j, price: {input: 2, output: 8}}}]
primary: {metric: mmhal/score, goal: maximize}
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """MMHal-Bench with 8 questions."""
    folder = tmp_path / "data" / "mmhal"
    folder.mkdir(parents=True)
    rows = []
    for number in range(8):
        Image.new("RGB", (8, 8)).save(folder / f"i{number}.png")
        rows.append(
            {
                "image_id": f"i{number}",
                "image_src": f"https://example.org/i{number}.png",
                "image_path": f"i{number}.png",
                "question_type": "other",
                "image_content": ["Cat", "Sofa"],
                "question": "What?",
                "gt_answer": "A cat.",
            }
        )
    (folder / "response_template.json").write_text(json.dumps(rows))
    return folder.parent


def test_calls_tokens_and_price(data: Path) -> None:
    settings = BenchmarkConfig.model_validate(
        {
            "name": "mmhal",
            "max_new_tokens": 100,
            "judge": {"model": "j", "price": {"input": 2, "output": 8}},
        }
    )
    assert settings.judge is not None
    data_paths = DataPaths(benchmark_data=data)
    found = _benchmark_tokens("report", settings, settings.judge, data_paths)
    around = len(PROMPT.replace("{}", "")) + len("Cat, SofaWhat?A cat.")
    sent = (8 * (around + 3) // 4, 8 * (around + 400) // 4)  # "No.", and 100 tokens
    assert (found.calls, found.sent) == ((8, 8), sent)
    assert found.replied == (8, 8 * 512)  # the script's own bound
    assert found.price == pytest.approx(
        (2e-6 * sent[0] + 8e-6 * 8, 2e-6 * sent[1] + 8e-6 * 8 * 512)
    )
    no_bound = settings.judge.model_copy(update={"send": {"max_tokens": None}})
    found = _benchmark_tokens("report", settings, no_bound, data_paths)
    assert found.replied == (8, None)
    assert found.price is not None and found.price[1] is None
    bound = settings.judge.model_copy(update={"max_tokens": 10, "price": None})
    found = _benchmark_tokens("report", settings, bound, data_paths)
    assert (found.replied, found.price) == ((8, 80), None)


def test_what_a_training_asks_on_its_way_counts(data: Path) -> None:
    judged = {"name": "mmhal", "max_new_tokens": 100, "judge": "j"}
    settings = BenchmarkConfig.model_validate(judged)
    asked = BenchmarkQuestions(settings=settings, kind="", questions=8, times=3)
    pairs = {"rounds": 2, "prompts": 10, "ranker": "judge", "judge": "j"}
    config = TrialConfig.model_validate({"model": "shapes", "pairs": pairs})
    trial = SimpleNamespace(arm="dpo")
    work: Any = SimpleNamespace(
        trial=trial, config=config, training="any", questions={"report/mmhal": asked}
    )
    found = estimate_judge_costs([work], DataPaths(benchmark_data=data))
    assert found.arms["dpo"].calls == (8, 24)
    assert found.unknown["pairs of dpo"].endswith("up to 2 rounds x 10 prompts x 8 a seed")


def test_sums_keep_what_is_not_known() -> None:
    one = JudgeTokens(calls=(1, 2), sent=(3, 4), replied=(5, None), price=(1.0, None))
    assert one.repeat(3) == replace(one, calls=(1, 6), sent=(3, 12))
    both = one + JudgeTokens(calls=(1, 1), sent=(1, 1), replied=(1, 1), price=(1.0, 2.0))
    assert both == JudgeTokens(calls=(2, 3), sent=(4, 5), replied=(6, None), price=(2.0, None))
    assert (both + JudgeTokens(price=None)).price is None


def test_the_plan_tells_it_by_arm(
    data: Path,
    write_study: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def plan(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(write_study(STUDY)), "--workdir", str(tmp_path / "w"), *arguments])
        printed = capsys.readouterr()
        assert ended.value.code in (None, 0), printed.err
        return printed.out

    here = ("--benchmark-data", str(data))
    judges: dict[str, Any] = json.loads(plan(*here, "--json"))["cost"]["judges"]
    assert [(arm["arm"], arm["calls"]) for arm in judges["arms"]] == [
        ("base (untrained)", [8, 8]),
        ("dpo", [16, 16]),
        ("chip", [16, 16]),
    ]
    low, high = judges["total"]["price"]
    assert [low, high] == pytest.approx([sum(arm["price"][k] for arm in judges["arms"])
                                         for k in (0, 1)])  # fmt: skip
    flat = " ".join(plan(*here).split())
    assert "to be judged calls tokens sent tokens replied price base (untrained) 8 " in flat
    elsewhere = json.loads(plan("--json"))["cost"]["judges"]
    assert elsewhere["arms"] == [] and "report/mmhal" in elsewhere["unknown"]
