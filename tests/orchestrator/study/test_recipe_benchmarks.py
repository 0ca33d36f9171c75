"""What models are asked: the study's benchmarks, or where it names none its recipe's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.utils.errors import ConfigError
from orchestrator.study.load import find_study, load_study
from orchestrator.study.model import Study, StudyChanges

BARE = """
study: bare
recipe: shapes
factors: {objective: [dpo, chip]}
seeds: [0]
baseline: {objective: dpo}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Study]:
    def loaded(text: str, recipe: str | None = None) -> Study:
        file = tmp_path / "study.yaml"
        file.write_text(text, encoding="utf-8")
        return load_study(file, StudyChanges(recipe=recipe), is_remote=True)

    return loaded


def list_benchmark_names(study: Study) -> tuple[list[str], list[str]]:
    found = study.benchmarks
    return [one.name for one in found.select], [one.name for one in found.report]


def test_a_study_without_benchmarks_has_its_recipes(load: Callable[..., Study]) -> None:
    study = load(BARE)
    assert list_benchmark_names(study) == ([], ["shapes"])
    assert study.primary is not None
    assert (study.primary.metric, study.primary.goal) == ("shapes/chair_i", "minimize")


def test_another_recipe_asks_for_its_own(load: Callable[..., Study]) -> None:
    study = load(BARE, recipe="llava-1.6-7b")
    assert list_benchmark_names(study) == (["pope"], ["amber", "objhal", "mmhal", "hallusionbench"])
    assert study.primary is not None
    assert study.primary.metric == "objhal/response_hallucination"


def test_what_the_study_says_is_asked_of_any_model(load: Callable[..., Study]) -> None:
    own = "benchmarks: {report: [shapes]}\nprimary: shapes/cover\n"
    study = load(BARE + own, recipe="llava-1.6-7b")
    assert list_benchmark_names(study) == ([], ["shapes"])
    assert study.primary is not None
    assert study.primary.metric == "shapes/cover"


def test_nothing_is_asked_where_the_study_says_so(load: Callable[..., Study]) -> None:
    study = load(BARE + "benchmarks: {}\n")
    assert list_benchmark_names(study) == ([], [])
    assert study.primary is None


def test_the_first_study_asks_a_large_model_nothing_of_the_embedded_world() -> None:
    changes = StudyChanges(recipe="llava-1.6-7b")
    study = load_study(find_study("encoder"), changes, is_remote=True)
    assert "shapes" not in {name for side in list_benchmark_names(study) for name in side}
    assert list_benchmark_names(load_study(find_study("encoder"))) == ([], ["shapes"])


def test_a_primary_that_no_benchmark_has_is_told(load: Callable[..., Study]) -> None:
    wrong = "benchmarks: {report: [shapes], primary: shapes/chairs}\n"
    with pytest.raises(ConfigError, match=r"primary\.metric: unknown metric 'shapes/chairs'"):
        load(BARE + wrong)
