"""What the command line changes of a study, and under which name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.utils.errors import ConfigError
from orchestrator.study.model import Study, format_level
from orchestrator.study.variant import StudyChanges, variant_name

from ..conftest import STUDY

Load = Callable[..., Study]


def list_problems(load: Load, **changes: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(STUDY, **changes)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "encoder"),
        ({"seeds": [7]}, "encoder"),
        ({"recipe": "llava-1.6-7b"}, "encoder@llava-1.6-7b"),
        ({"recipe": "mine/other.yaml"}, "encoder@other"),
        ({"recipe": "other.yaml"}, "encoder@other"),
        ({"overrides": {"optimizer.lr": 1e-6}}, "encoder+optimizer.lr=1e-6"),
        (
            {"recipe": "shapes", "overrides": {"training.max_steps": 3, "objective.beta": 0.5}},
            "encoder@shapes+objective.beta=0.5+training.max_steps=3",
        ),
        ({"overrides": {"objective.terms": ["response", "token"]}},
         "encoder+objective.terms=response,token"),
    ],
)  # fmt: skip
def test_a_variant_is_named_by_its_changes(changes: dict[str, Any], name: str) -> None:
    assert variant_name("encoder", StudyChanges(**changes)) == name


def test_what_a_name_cannot_hold_is_told_apart() -> None:
    def named(value: str) -> str:
        return variant_name("encoder", StudyChanges(overrides={"data.source": value}))

    paths = ["a/b.jsonl", "a-b.jsonl", "a b.jsonl", f"{'x' * 300}1", f"{'x' * 300}2"]
    names = [named(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert "/" not in "".join(names) and all(len(name) <= 160 for name in names)
    many = {f"objective.betas.{term}": 0.123456789 for term in ("response", "segment", "token")}
    long = variant_name("s" * 120, StudyChanges(overrides=many))
    assert len(long) == 160
    assert long != variant_name("s" * 120, StudyChanges(overrides={**many, "objective.beta": 0.1}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-6, "1e-6"),
        (0.00002, "2e-5"),
        (1.5, "1.5"),
        (3.0, "3"),
        (1e16, "1e16"),
        (0.1234567, "0.1234567"),  # no digit is lost: levels that differ have names that differ
        (True, "true"),
        (None, "null"),
        ([1, 2.5], "1,2.5"),
    ],
)
def test_a_level_is_called_as_it_is_written(value: object, text: str) -> None:
    assert format_level(value) == text


def test_seeds_extend_a_study(load: Load) -> None:
    assert load(STUDY, seeds=[2]).seeds == (0, 1, 2)
    assert load(STUDY, seeds=[0, 1, 2]).seeds == (0, 1, 2)
    assert load(STUDY, seeds=[5, 1]).seeds == (0, 1, 5)
    assert load(STUDY, seeds=[1]).seeds == (1,)  # a part of the study, nothing new


def test_an_override_that_a_factor_would_undo_is_refused(load: Load) -> None:
    (found,) = list_problems(load, overrides={"objective": "hdpo"})
    assert found.startswith("--set: objective: is set by every level of the factor 'objective'")
    assert load(STUDY, overrides={"objective.beta": 0.2}).base["objective"]["beta"] == 0.2


def test_what_the_study_itself_decides_is_refused(load: Load) -> None:
    assert list_problems(load, overrides={"seed": 3, "benchmarks.report": ["shapes"]}) == [
        "--set: seed: the study's seeds are set by `seeds:` or --seeds",
        "--set: benchmarks.report: the benchmarks to tune on and to report are set only by the "
        "study file's `benchmarks:`: change it there",
    ]


def test_overrides_mean_the_same_in_any_order(load: Load) -> None:
    edits = {"objective.terms": ["response", "segment"], "objective.beta": 0.2}
    text = STUDY.replace("  objective: [dpo, chip]\n", "").replace("objective: dpo, ", "")
    ways = [load(text, overrides=dict(pairs)) for pairs in (edits.items(), [*edits.items()][::-1])]
    assert ways[0].base == ways[1].base and ways[0].name == ways[1].name


def test_a_recipe_file_does_not_take_a_shipped_ones_place(load: Load, tmp_path: Path) -> None:
    file = tmp_path / "shapes.yaml"
    file.write_text("model: shapes\n")
    (found,) = list_problems(load, recipe=str(file))
    assert "has the name of a shipped recipe" in found
    assert load(STUDY, recipe=str(file.rename(tmp_path / "other.yaml"))).name == "small@other"
