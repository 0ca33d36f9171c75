"""The shipped studies: each is planned offline on every recipe, and says what it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core import recipes
from chip_core.config.benchmark import DataPaths
from chip_core.evaluation.readiness import find_benchmark_problems
from orchestrator.plan.plan import make_plan
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import resolve_search
from orchestrator.study.load import load_study
from orchestrator.study.model import StudyChanges

ABLATIONS = Path(__file__).parents[3] / "ablations"
#: Arms of each study: its cells, none of which are one trial.
ARMS = {
    "best_rate": 2,
    "encoder": 2 * 2,
    "general": 2,
    "hallucination": 4,
    "leave_one_out": 5,
    "noise_steps": 7,
    "objectives": 4,
    "rejected_image": 11,
    "rivals": 28,
    "rounds": 3,
    "segment_weight": 5,
    "token_weight": 5,
}
#: Benchmarks whose questions are in files that are not shipped, by study.
LACKING = {
    "general": {"mmmu", "scienceqa", "llava_bench"},
    "hallucination": {"objhal", "mmhal", "hallusionbench", "amber"},
}


def test_these_are_shipped() -> None:
    assert sorted(path.stem for path in ABLATIONS.glob("*.yaml")) == sorted(ARMS)


@pytest.mark.parametrize("recipe", recipes.recipe_names())
@pytest.mark.parametrize("study", ARMS)
def test_it_is_planned_offline_on_every_recipe(
    study: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The version is asked of a process of its own.
    monkeypatch.setattr("chip_core.evaluation.benchmarks.lmms_eval.read_version", lambda: "0")
    plan = make_plan(load_study(ABLATIONS / f"{study}.yaml", StudyChanges(recipe=recipe)))
    plan = resolve_search(plan, Ledger(tmp_path))
    assert len(plan.arms) == ARMS[study]
    # three seeds, or before them three draws of each search; and the untrained model
    assert len(plan.trials) == ARMS[study] * 3 + 1
    primary = plan.study.primary
    assert primary is not None and plan.baseline in plan.arms


@pytest.mark.parametrize("study", ARMS)
def test_it_says_in_lines_what_data_it_lacks(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "chip_core.evaluation.benchmarks.lmms_eval.LmmsEvalBenchmark.problems", lambda self: []
    )
    said = find_benchmark_problems(load_study(ABLATIONS / f"{study}.yaml").benchmarks, DataPaths())
    assert all("\n" not in line for line in said)
    told = {line.partition(":")[0] for line in said if "its questions are in files" in line}
    assert told == LACKING.get(study, set())
    if study not in LACKING:
        assert said == []
