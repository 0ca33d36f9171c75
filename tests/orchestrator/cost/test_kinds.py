"""Which trials take equally long."""

from __future__ import annotations

from typing import Any

import pytest

from chip_core.config.trial import TrialConfig
from chip_core.config.validation import set_key
from orchestrator.cost.kinds import LIVE, STORED, answer_kind, start_kind, training_kind


def make_config(**changes: Any) -> TrialConfig:
    tree: dict[str, Any] = {"model": "shapes", "objective": "chip"}
    for key, value in changes.items():
        set_key(tree, key.replace("__", "."), value)
    return TrialConfig.model_validate(tree)


def find_kind(config: TrialConfig, reference: str = STORED) -> str:
    return training_kind(config, reference, features=False)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"optimizer__lr": 1e-3},
        {"objective__weights__segment": 7.0},
        {"objective__beta": 0.5},
        {"training__max_steps": 3},
        {"training__epochs": 4},
        {"rejected_image__diffusion__timestep": 100},
        {"rejected_image__crop__width": 100},
        {"data__limit": 64},
        {"engine__checkpoint_every": 5},
    ],
)
def test_settings_that_change_no_time_keep_the_kind(change: dict[str, Any]) -> None:
    assert find_kind(make_config(**change)) == find_kind(make_config())


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "dpo"},
        {"objective__weights__visual": 0.0},
        {"vision_encoder": "trained"},
        {"language_model": "lora"},
        {"vision_encoder": "lora"},
        {"projector": "lora"},
        {"rejected_image": "crop"},
        {"training__batch_size": 8},
        {"training__max_length": 64},
        {"engine__micro_batch": 1},
        {"engine__threads": 2},
        {"model__dtype": "bf16"},
        {"data__source": "other.jsonl"},
    ],
)
def test_settings_that_change_the_time_change_the_kind(change: dict[str, Any]) -> None:
    assert find_kind(make_config(**change)) != find_kind(make_config())


def test_a_computed_reference_is_another_kind() -> None:
    assert find_kind(make_config(), LIVE) != find_kind(make_config(), STORED)
    assert training_kind(make_config(), STORED, features=True) != find_kind(make_config())


def test_an_answer_is_of_its_model_and_its_benchmark() -> None:
    made = make_config(benchmarks__report=["shapes", {"name": "shapes:x", "limit": 3}])
    one, other = made.benchmarks.report
    assert answer_kind(made, one) != answer_kind(made, other)
    fewer = one.model_copy(update={"limit": 10})
    assert answer_kind(made, one) == answer_kind(make_config(objective="dpo"), fewer)
    assert answer_kind(made, one) != answer_kind(make_config(engine__generation_batch=1), one)
    adapted = make_config(vision_encoder="lora")  # whose answers pass through adapters
    assert answer_kind(made, one) != answer_kind(adapted, one)
    assert start_kind(made) == start_kind(make_config(objective="dpo", vision_encoder="trained"))
