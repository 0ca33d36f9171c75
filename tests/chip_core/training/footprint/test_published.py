"""The sizes that are built without files are the published ones."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from chip_core import recipes
from chip_core.config.trial import ModelConfig
from chip_core.config.validation import parse_trial_config
from chip_core.training.footprint.published import (
    HEAD_SHAPES,
    MODELS,
    image_size,
    load_model_config,
)

#: Millions of parameters, as the models' pages on the hub show them; of Muffin docs/muffin.md.
MILLIONS = {
    "llava-hf/llava-1.5-7b-hf": 7_063,
    "llava-hf/llava-v1.6-vicuna-7b-hf": 7_063,
    "llava-hf/llava-v1.6-mistral-7b-hf": 7_567,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_755,
    "HuggingFaceTB/SmolVLM-500M-Instruct": 507,
    "Yirany/RLHF-V_v0_SFT": 13_629,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_models_parameters_are_as_many_as_published(name: str) -> None:
    found = load_model_config(ModelConfig(path=name))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(found)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == MILLIONS[name]
    text = found.get_text_config()
    assert HEAD_SHAPES[name] == (text.hidden_size, text.vocab_size)


def test_every_recipes_model_is_known() -> None:
    made = [
        parse_trial_config(recipes.read_yaml(recipes.find_recipe(name)), name)
        for name in recipes.recipe_names()
    ]
    assert {one.model.path for one in made} - {"shapes"} <= set(MODELS)


def test_a_model_that_is_nowhere_has_no_sizes() -> None:
    assert load_model_config(ModelConfig(path="nobody/nothing")) is None


@pytest.mark.parametrize(
    ("name", "tokens", "tiles"),
    [
        ("llava-hf/llava-1.5-7b-hf", 24 * 24, 1),
        # The whole image, and 2 × 2 tiles of 24 × 24 with a token at the end of each row.
        ("llava-hf/llava-v1.6-vicuna-7b-hf", 24 * 24 + 48 * (48 + 1), 5),
        ("Yirany/RLHF-V_v0_SFT", 64 + 2, 1),
        ("HuggingFaceTB/SmolVLM-500M-Instruct", 17 * (8 * 8 + 3), 17),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 17 * 23 + 2, 1),  # 480 × 640 pixels in squares of 28
    ],
)
def test_the_tokens_of_an_image(name: str, tokens: int, tiles: int) -> None:
    size = image_size(load_model_config(ModelConfig(path=name)))
    assert (size.tokens, size.tiles) == (tokens, tiles)
