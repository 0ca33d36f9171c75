"""Bad study files: every problem at once, each with its place and what would do."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from chip_core.utils.errors import ConfigError
from orchestrator.study.load import find_study, load_study
from orchestrator.study.model import Study, StudyChanges

from ..conftest import STUDY

Load = Callable[..., Study]


def list_problems(load: Load, text: str, **changes: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, **changes)
    return [line.split("study.yaml", 1)[-1].removeprefix(": ") for line in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "seeds: [0, 1]",
            "sedes: [0, 1]",
            "sedes: unknown key: did you mean 'seeds'? choices: baseline, benchmarks, budget, "
            "cells, design, early_stopping, evaluation, exclude, exploratory, factors, include, "
            "limits, placebo, primary, published, question, recipe, secondary, seeds, study, tune, "
            "when",
        ),
        (
            "[dpo, chip]",
            "[dpo, chp]",
            "factors.objective[1]: unknown level 'chp': did you mean 'chip'? "
            "choices: alpha_divergence, aot, ",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "vision_encodr: [frozen, trained]",
            "factors.vision_encodr: unknown key 'vision_encodr': did you mean 'vision_encoder'?",
        ),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\nevaluation: {generator: openai}",
            "evaluation.generator: generator 'openai' needs base_url: write http://HOST:PORT/v1",
        ),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\nevaluation: {generator: {kind: vllm, model: m}}",
            "evaluation.generator: generator 'vllm' does not use model: remove it",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "evaluation.generator: [transformers, vllm]",
            "factors.evaluation.generator: 'evaluation.generator' cannot be a factor: use the "
            "study's",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "optimizer.learning: [1, 2]",
            "factors.optimizer.learning: unknown key 'optimizer.learning': ",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "vision_encoder: []",
            "factors.vision_encoder: has no levels: give at least one",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "vision_encoder: [frozen, frozen]",
            "factors.vision_encoder: the level 'frozen' is listed twice: remove one",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "optimizer.lr: [fast, 1e-6]",
            "factors.optimizer.lr[0]: input should be a valid number, not 'fast'",
        ),
        (
            "vision_encoder: frozen}",
            "vision_encoder: wide}",
            "baseline.vision_encoder: unknown level 'wide': choices: frozen, trained",
        ),
        (
            ", vision_encoder: frozen}",
            "}",
            "baseline: names no level of 'vision_encoder': a baseline is one cell",
        ),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\nexclude: [{objective: dpo}]",
            "baseline: this cell is excluded: choose a cell of the grid",
        ),
        (
            "shapes/chair_i",
            "shapes/chiar_i",
            "primary.metric: unknown metric 'shapes/chiar_i': did you mean 'shapes/chair_i'? "
            "choices: shapes/chair_i, shapes/chair_s, shapes/cover, shapes/hal",
        ),
        (
            "goal: minimize",
            "goal: maximize",
            "primary.goal: 'shapes/chair_i' must be minimized: write `goal: minimize`",
        ),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds: not distinct: 0 is listed twice: remove one"),
        ("seeds: [0, 1]", "seeds: []", "seeds: is empty: give at least one seed"),
        (
            "seeds: [0, 1]",
            "seeds: [0, one]",
            "seeds: give a count or a list of whole numbers, not [0, 'one']",
        ),
        (
            "vision_encoder: [frozen, trained]",
            "vision_encoder: trained",
            "factors.vision_encoder: give a list of levels, or levels by name",
        ),
        ("seeds: [0, 1]", "seeds: [-1]", "seeds: a seed is negative: use 0 or more"),
        ("seeds: [0, 1]", f"seeds: [{2**63}]", "seeds: a seed is above 9223372036854775807: use a"),
        ("report: [shapes]", "report: [shaps]", "benchmarks.report[0]: unknown benchmark 'shaps'"),
        (
            "recipe: shapes",
            "recipe: shape",
            "recipe: unknown recipe 'shape': did you mean 'shapes'?",
        ),
        ("recipe: shapes", "recipe: ./no.yaml", "recipe: no file ./no.yaml: name a recipe file"),
        ("study: small", "study: a/b", "study: 'a/b' is not a valid name: use letters, digits"),
        ("study: small\n", "", "study: is missing: add it"),
        (
            "goal: minimize}",
            "smallest_difference: 0}",
            "primary.smallest_difference: input should be greater than 0, not 0",
        ),
        (
            "goal: minimize}",
            "smallest_difference: .inf}",
            "primary.smallest_difference: input should be a finite number",
        ),
        (
            "primary:",
            "secondary: [shapes/covr]\nprimary:",
            "secondary[0].metric: unknown metric 'shapes/covr': did you mean 'shapes/cover'?",
        ),
        (
            "primary:",
            "secondary: [shapes/chair_i]\nprimary:",
            "secondary[0]: 'shapes/chair_i' is declared twice: remove one",
        ),
        (
            "primary:",
            "secondary: [{metric: shapes/hal, goal: maximize}]\nprimary:",
            "secondary[0].goal: 'shapes/hal' must be minimized: write `goal: minimize`",
        ),
        (
            "primary:",
            "published: [{arm: base, values: {shapes/hal: 1}}]\nprimary:",
            "published[0].source: is missing: add it",
        ),
        (
            "primary:",
            "published: [{source: ' ', arm: base, values: {shapes/hal: 1}}]\nprimary:",
            "published[0].source: string should have at least 1 character",
        ),
        (
            "primary:",
            "published: [{source: A, arm: base, values: {amber/hal: 1}}]\nprimary:",
            "published[0].values: unknown metric 'amber/hal': did you mean 'shapes/hal'?",
        ),
        (
            "primary:",
            "published: [{source: A, arm: base, values: {shapes/hal: .nan}}]\nprimary:",
            "published[0].values.shapes/hal: nan is not a number: leave it out",
        ),
        (
            "primary:",
            "published: [{source: A, arm: {objective: dpo}, values: {shapes/hal: 1}}]\nprimary:",
            "published[0].arm: names no level of 'vision_encoder': an arm is one cell",
        ),
        (
            "primary:",
            "published: [{source: A, arm: {objective: dpo, vision_encoder: wide}, "
            "values: {shapes/hal: 1}}]\nprimary:",
            "published[0].arm.vision_encoder: unknown level 'wide': choices: frozen, trained",
        ),
    ],
)
def test_bad_files(load: Load, old: str, new: str, expected: str) -> None:
    assert old in STUDY
    found = list_problems(load, STUDY.replace(old, new))
    assert any(line.startswith(expected) for line in found), found


def test_a_tab_is_told_with_its_line(load: Load) -> None:
    (found,) = list_problems(load, "study: small\nfactors:\n\tobjective: [dpo]\n")
    assert found == ":3:1: a tab instead of spaces: indent with spaces"


def test_a_syntax_error_is_told_with_its_line(load: Load) -> None:
    (found,) = list_problems(load, "study: [small\nfactors: {}\n")
    assert found.startswith(":2:8: ")


def test_a_key_that_stands_twice_is_refused(load: Load) -> None:
    (found,) = list_problems(load, STUDY + "\nseeds: [3]\n")
    assert "the key 'seeds' is set twice" in found


def test_all_problems_at_once(load: Load) -> None:
    text = STUDY.replace("[dpo, chip]", "[dpo, chp]").replace("seeds: [0, 1]", "seeds: [1, 1]")
    text = text.replace("shapes/chair_i", "shapes/x").replace("{objective: dpo", "{objectiv: dpo")
    found = list_problems(load, text)
    keys = [line.split(": ")[0] for line in found]
    assert {"factors.objective[1]", "seeds", "primary.metric", "baseline.objectiv"} <= set(keys)


def test_a_wrong_shape_does_not_hide_the_other_problems(load: Load) -> None:
    text = STUDY.replace("goal: minimize", "goal: least").replace("study: small", "study: [a]")
    text = text.replace("[dpo, chip]", "[dpo, chp]").replace("seeds: [0, 1]", "sedes: [0, 1]")
    found = list_problems(load, text)
    keys = {line.split(": ")[0] for line in found}
    assert keys == {"study", "sedes", "primary.goal", "factors.objective[1]"}


def test_what_a_broken_key_entails_is_not_told_beside_it(load: Load) -> None:
    text = STUDY.replace("  objective: [dpo", "  - objective: [dpo")
    text = text.replace("  vision_encoder: [", "    vision_encoder: [")
    (found,) = list_problems(load, text)
    assert found.startswith("factors: input should be a valid dictionary")


def test_an_unreadable_weights_folder_is_told(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    (found,) = list_problems(load, STUDY, overrides={"model": str(folder)})
    assert f"model.path: no folder {folder}" in found
    folder.mkdir()
    (found,) = list_problems(load, STUDY, overrides={"model": str(folder)})
    assert "config.json cannot be read" in found
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (found,) = list_problems(load, STUDY, overrides={"model": str(folder)})
    assert "no *.safetensors" in found
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    (found,) = list_problems(load, STUDY, overrides={"model": str(folder)})
    assert "model.safetensors cannot be read" in found


def test_missing_data_is_told(load: Load, tmp_path: Path) -> None:
    (found,) = list_problems(load, STUDY, overrides={"data.source": "none.jsonl"})
    assert "data.source: no file none.jsonl: name a file, a folder, a glob" in found
    (tmp_path / "empty").mkdir()
    text = STUDY.replace("vision_encoder: [frozen, trained]", "data.source: [shapes, empty, x.y]")
    found = list_problems(load, text.replace("vision_encoder: frozen", "data.source: shapes"))
    assert len(found) == 2
    assert "factors.data.source[1]: no *.parquet or *.jsonl in empty" in found[0]
    assert "factors.data.source[2]: no file x.y" in found[1]


def test_an_unknown_key_on_the_command_line(load: Load) -> None:
    (found,) = list_problems(load, STUDY, overrides={"optimizer.lrr": 1})
    assert found.startswith("--set: optimizer.lrr: unknown key 'optimizer.lrr': did you mean")


def test_no_such_study_suggests_a_shipped_one() -> None:
    with pytest.raises(ConfigError, match="encodr: no such study file: did you mean 'encoder'"):
        find_study("encodr")


def test_a_shipped_study_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert find_study("encoder") == find_study("ablations/encoder.yaml")


def test_yaml_scalars_are_what_they_look_like(load: Load) -> None:
    study = load(STUDY.replace("vision_encoder: [frozen, trained]", "optimizer.lr: [1e-6, 2e-05]"
        ).replace("vision_encoder: frozen", "optimizer.lr: 1e-6"))  # fmt: skip
    assert [level.name for level in study.factors[1].levels] == ["1e-6", "2e-5"]
    assert study.baseline["optimizer.lr"] == "1e-6"


def test_named_levels_are_sets_of_overrides(load: Load) -> None:
    text = STUDY.replace(
        "vision_encoder: [frozen, trained]",
        "encoder: {frozen: {vision_encoder: frozen}, "
        "tuned: {vision_encoder: trained, optimizer.lr: 1e-6}}",
    ).replace("vision_encoder: frozen}\nb", "encoder: frozen}\nb")
    study = load(text)
    assert study.factors[1].levels[1].overrides == {
        "vision_encoder": "trained",
        "optimizer.lr": 1e-6,
    }


def test_changes_make_a_variant_with_its_own_name(load: Load) -> None:
    assert load(STUDY, overrides={"optimizer.lr": 1e-6}).name == "small+optimizer.lr=1e-6"
    assert load(STUDY, recipe="shapes").name == "small@shapes"
    assert load(STUDY, seeds=[0, 1, 2]).name == "small"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "ablations").glob("*.yaml")))
def test_shipped_studies_load(path: Path) -> None:
    assert load_study(path, StudyChanges()).name == path.stem


def test_what_a_study_declares(load: Load) -> None:
    more = """
    secondary: [shapes/cover, {metric: shapes/hal, smallest_difference: 2}]
    exploratory: true
    published:
      - source: " A paper "
        arm: {objective: chip, vision_encoder: frozen}
        values: {shapes/hal: 9}
      - {source: Another, arm: base, values: {shapes/hal: 30, shapes/chair_i: 11.5}}
    """
    study = load(
        STUDY.replace("goal: minimize}", "smallest_difference: 1.5}") + textwrap.dedent(more)
    )
    assert [(one.metric, one.goal, one.smallest_difference) for one in study.declared_metrics] == [
        ("shapes/chair_i", "minimize", 1.5),
        ("shapes/cover", "maximize", None),
        ("shapes/hal", "minimize", 2),
    ]
    assert study.exploratory
    first, second = study.published
    assert (first.source, first.values) == ("A paper", {"shapes/hal": 9})
    assert first.arm == {"objective": "chip", "vision_encoder": "frozen"}
    assert second.arm is None
