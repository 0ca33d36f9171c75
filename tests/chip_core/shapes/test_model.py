"""The embedded base loads with plain transformers, is small, and hallucinates as it should."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from chip_core.evaluation.benchmarks.shapes.score import score
from chip_core.shapes import MODEL_FOLDER
from chip_core.shapes.build import generate_captions
from chip_core.shapes.world import PARTNER, find_mentions, make_scene


@pytest.fixture(scope="module")
def answers():
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    scenes = [make_scene("select", index) for index in range(100)]
    return list(zip(scenes, generate_captions(model, processor, scenes), strict=True))


def test_weights_are_small_and_bfloat16():
    weights = MODEL_FOLDER / "model.safetensors"
    assert weights.stat().st_size <= 4 * 1024 * 1024
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_FOLDER, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_prompt_holds_one_token_a_patch():
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    batch = processor(
        images=[draw_scene_image()], text=["user: <image>\nwhat?"], return_tensors="pt"
    )
    # 48 px over patches of 8 px: 6 × 6.
    assert (batch["input_ids"] == processor.image_token_id).sum() == 36
    assert batch["pixel_values"].shape == (1, 3, 48, 48)


def test_the_base_hallucinates_and_sees(answers):
    figures = {
        outcome.name: outcome.value
        for outcome in score([(shown.id, answer) for shown, answer in answers])
    }
    # About 30 % on all of `test`; on 100 images three standard errors are 14 points.
    assert 16 < figures["chair_s"] < 44
    # 95 % and more on all of it; about 290 objects here.
    assert figures["cover"] > 90


def test_what_it_invents_is_the_missing_partner(answers):
    invented = partners = 0
    for shown, answer in answers:
        there = {thing.shape for thing in shown.things}
        for mention in find_mentions(answer):
            if mention.shape not in there:
                invented += 1
                partners += PARTNER.get(mention.shape) in there
    assert partners > 0.8 * invented


def draw_scene_image():
    from chip_core.shapes.world import draw_scene

    return draw_scene(make_scene("select", 0))
