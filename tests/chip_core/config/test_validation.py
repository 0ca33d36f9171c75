"""What is wrong with a configuration is told in sentences, all of it, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from chip_core.config.fields import Section, hashed
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import find_key_problem, parse_trial_config, set_key
from chip_core.utils.errors import ConfigError


def find_problems(**tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_trial_config({"model": "shapes", **tree}, "x.yaml")
    return raised.value.problems


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"vision_encoder": "frozn"}, "vision_encoder: unknown level 'frozn': did you mean 'froz"),
        ({"optimizer": {"k": 1}}, "optimizer.k: unknown key: choices: betas, clip, eps, lr"),
        ({"optimizer": {"\x1b[31m": 1}}, "optimizer.\ufffd[31m: unknown key: choices: betas, clip"),
        ({"training": {"batch_size": 0}}, "training.batch_size: input should be greater than or"),
        ({"training": {"batch_size": [1]}}, "training.batch_size: input should be a valid integ"),
        ({"objective": {"preset": ["dpo"]}}, "objective.preset: input should be a valid string"),
        ({"objective": {"beta": float("inf")}}, "objective.beta: input should be a finite number"),
        ({"objective": {"anchor": {"delta": float("nan")}}}, "delta: input should be a finite nu"),
        ({"objective": {"custom": {"a:b": float("nan")}}}, "custom.a:b: input should be a finite"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas[1]: input should be less than 1"),
        ({"lora": {"targets": []}}, "lora.targets: names no layer: write all, or names such as"),
        ({"seed": 2**63}, "seed: input should be less than or equal to 9223372036854775807"),
        ({"training": {"max_steps": True}}, "max_steps: input should be a valid integer, not true"),
        ({"training": {"max_steps": "20"}}, "not '20': write 20 without quotes"),
        ({"training": {"max_steps": "1_000"}}, "not '1_000': write 1000"),  # a text in YAML 1.2
        ({"training": {"max_steps": 1e3}}, "not 1000.0: write 1000"),
        ({"training": {"max_steps": "few"}}, "a valid integer, not 'few'"),
        ({"optimizer": {"lr": "1e-6"}}, "a valid number, not '1e-6': write 1e-6 without quotes"),
        ({"optimizer": {"betas": [0.9, False]}}, "optimizer.betas[1]: input should be a valid num"),
        ({"engine": {"gpus_per_worker": 2}}, "gpus_per_worker: 2 GPUs are requested, but a worker"),
        ({"engine": {"gpus_per_worker": 0.5, "workers_per_trial": 2}},
         "engine: 2 workers of a trial cannot share a GPU (NCCL refuses it), but gpus_per_worker "
         "is 0.5: write gpus_per_worker: 1, or workers_per_trial: 1"),
        ({"training": {"gradients": "bf16"}}, "gradients is bf16, but model.dtype is fp32: write"),
        ({"optimizer": {"states": "int4"}}, "optimizer.states: unknown level 'int4': "),
        ({"training": {"master": "bf16"}}, "training.master: "),
        ({"engine": {"bucket": "off"}}, "a valid boolean, not 'off': write false"),
        ({"engine": {"bucket": 1}}, "a valid boolean, not 1: write true"),
        ({"objective": {"custom": {"a:b": "1"}}}, "custom.a:b: input should be a valid number"),
        ({"benchmarks": {"report": [{"name": "a", "limit": True}]}}, "report[0].limit: input shou"),
        ({"benchmarks": {"report": ["a", "a"]}}, "benchmarks: report: a benchmark is named twice"),
        ({"benchmarks": {"report": [{"limit": 1}]}}, "benchmarks.report[0].name: is missing: add"),
        ({"rejected_image": {"lighting": {"low": 0.5}}}, "lighting: low is 0.5, above high, 0.4"),
        ({"rejected_image": {"strategy": "inpaint", "inpaint": {"path": "~nobody-here/x"}}},
         "inpaint.path: no diffusers pipeline in ~nobody-here/x: name its folder"),
    ],
)  # fmt: skip
def test_a_problem_is_a_line_with_its_key(tree: dict[str, Any], expected: str) -> None:
    (line,) = find_problems(**tree)
    assert line.startswith("x.yaml: ")
    assert expected in line


class Own(Section):
    """Settings of a user's own strategy."""

    box: tuple[int, int] = hashed((1, 2), doc="a box")
    names: set[str] = hashed(set(), doc="names")


def test_sections_of_a_users_own_are_held_to_it_too() -> None:
    assert Own.model_validate({"box": [3, 4], "names": ["a"]}).box == (3, 4)  # lists, as YAML has
    for wrong in ([True, 2], ["1", 2], [1.0, 2]):
        with pytest.raises(ValidationError):
            Own.model_validate({"box": wrong})


def test_problems_are_told_together() -> None:
    assert len(find_problems(seed=-1, projector="thawed", optimizer={"lr": 0})) == 3


def test_what_is_missing_is_told() -> None:
    with pytest.raises(ConfigError, match="x.yaml: model: is missing: add it"):
        parse_trial_config({}, "x.yaml")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optimizer.lr", None),
        ("objective.betas.token", None),
        ("rejected_image.parameters.any.thing", None),
        ("optimiser.lr", "unknown key 'optimiser.lr': did you mean 'optimizer'"),
        ("optimizer.rl", "did you mean 'optimizer.lr'"),
        ("optimizer.lr.more", "'optimizer.lr' has no keys below it"),
    ],
)
def test_a_key_is_one_of_the_configurations(key: str, expected: str | None) -> None:
    found = find_key_problem(key)
    assert (found is None) if expected is None else (expected in str(found))


def test_a_bare_string_sets_the_key_it_stands_for() -> None:
    tree: dict[str, Any] = {"objective": "chip", "rejected_image": {"crop": {"share": 0.2}}}
    set_key(tree, "objective.beta", 0.2)
    assert tree["objective"] == {"preset": "chip", "beta": 0.2}
    set_key(tree, "objective.terms", ["response"])
    set_key(tree, "objective", "dpo")  # a preset names the active terms
    assert tree["objective"] == {"preset": "dpo", "beta": 0.2}
    set_key(tree, "rejected_image", "crop")
    assert tree["rejected_image"] == {"strategy": "crop", "crop": {"share": 0.2}}
    set_key(tree, "staged.share", 0.1)
    assert tree["staged"] == {"share": 0.1}


def test_one_lora_target_is_a_list_of_one() -> None:
    config = TrialConfig.model_validate({"model": "shapes", "lora": {"targets": "q_proj"}})
    assert config.lora.targets == ("q_proj",)


def test_another_generator_takes_the_place_of_one_with_its_settings() -> None:
    settings = {"kind": "openai", "version": "1", "base_url": "http://127.0.0.1:1/v1"}
    tree = {"evaluation": {"generator": {**settings}, "parity": {"items": 3}}}
    set_key(tree, "evaluation.generator", "openai")  # as it is
    assert tree["evaluation"]["generator"] == settings
    set_key(tree, "evaluation.generator", "transformers")
    assert tree["evaluation"] == {"generator": {"kind": "transformers"}, "parity": {"items": 3}}
