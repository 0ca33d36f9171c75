"""Shipped recipes: complete, and read without weights or a network."""

from __future__ import annotations

import pytest

from chip_core import recipes
from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import parse_trial_config
from chip_core.models import loading


def load_config(name: str) -> TrialConfig:
    return parse_trial_config(recipes.read_yaml(recipes.find_recipe(name)), name)


def test_these_are_shipped() -> None:
    assert recipes.recipe_names() == [
        "llava-1.5-7b", "llava-1.6-7b", "llava-1.6-7b-full", "muffin-13b", "qwen2.5-vl-3b",
        "shapes", "smolvlm-500m",
    ]  # fmt: skip


@pytest.mark.parametrize("name", recipes.recipe_names())
def test_a_recipe_is_complete_and_needs_nothing_to_be_planned(name: str) -> None:
    made = load_config(name)
    assert loading.find_model_problem(made.model) is None
    assert len(fingerprint(training_identity(made, loading.identity(made.model), {}))) == 64


def test_the_papers_recipe_has_the_released_settings() -> None:
    made = load_config("llava-1.6-7b-full")
    assert made.optimizer.lr == 5e-7
    assert (made.optimizer.schedule, made.optimizer.warmup) == ("cosine", 0.03)
    assert (made.optimizer.weight_decay, made.optimizer.clip) == (0.0, 20.0)
    assert (made.training.batch_size, made.training.epochs) == (4 * 1 * 8, 1)
    assert made.model.dtype == "bf16"
    assert made.objective.beta == 0.1
    assert made.objective.weight("segment") == 3.0  # dpo_token_weight 4.0 = 1 + λ
    assert made.objective.weight("token") == 0.1
    assert made.rejected_image.diffusion.timestep == 500


def test_muffins_recipe_has_the_released_settings_of_its_own() -> None:
    made, other = load_config("muffin-13b"), load_config("llava-1.6-7b-full")
    assert made.training.epochs == 3
    assert made.training.max_length == 2048
    assert made.objective.weight("segment") == 1.0  # dpo_token_weight 2.0 = 1 + λ
    assert (made.training.label_rule, made.training.augment) == ("released", "off")
    assert made.optimizer == other.optimizer
    assert made.rejected_image == other.rejected_image
    assert made.training.batch_size == other.training.batch_size
    assert (made.vision_encoder, made.projector) == ("frozen", "trained")
