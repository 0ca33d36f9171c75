"""Pairs whose chosen and rejected response have an image each: the fast ways against the slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.training.policy import Policy
from chip_core.training.states import pack

from .test_presets import PAIRS, assert_step_equals_naive, build_model, make_moved_model

#: The middle one has one image for both; the others' own are of other sizes than their first.
OWN = [
    replace(PAIRS[0], own_image=Image.new("RGB", (70, 40), (20, 200, 90))),
    PAIRS[1],
    replace(PAIRS[2], own_image=Image.new("RGB", (90, 90), (220, 30, 0))),
]


def make_config(objective: Any, **further: Any) -> TrialConfig:
    given = {"model": "x", "objective": objective, "vision_encoder": "trained", **further}
    return TrialConfig.model_validate(given)


@pytest.mark.parametrize(
    ("family", "objective"), [("llava", "tpo"), ("llava", "symmpo"), ("qwen2_5_vl", "chip")]
)
def test_each_response_is_read_under_its_own_image(family: str, objective: str) -> None:
    config = make_config(objective, rejected_image="black")
    assert_step_equals_naive(family, config, OWN)


def test_what_a_side_says_is_what_a_pair_of_its_image_says() -> None:
    """Rows of one image each are the truth: the chosen one's pair, and the rejected one's."""
    model, processor = build_model("llava")
    config = make_config("tpo", rejected_image="black")
    said = {}
    for name, pairs in {
        "sides": OWN,
        "first": [replace(pair, own_image=None) for pair in OWN],
        "own": [replace(pair, image=pair.own_image or pair.image, own_image=None) for pair in OWN],
    }.items():
        batch = PairEncoder(processor, config, pairs).encode_batch(range(3))
        said[name] = Policy(model, config.objective).reference_scores(batch).views
    for view, of in {
        "chosen": "first", "rejected_image": "first",
        "rejected": "own", "rejected_image_rejected": "own",
    }.items():  # fmt: skip
        for quantity in ("logps", "logits"):
            found, true = (getattr(said[name][view], quantity) for name in ("sides", of))
            assert (found is None) == (true is None)
            if found is not None:
                torch.testing.assert_close(found, true, rtol=0, atol=1e-5)
    moved_by = said["first"]["rejected"].logits - said["own"]["rejected"].logits
    assert float(moved_by.abs().max()) > 1e-3  # the images do tell


def test_no_prefix_is_shared_where_images_differ() -> None:
    config = make_config("dpo")
    encoder = PairEncoder(build_model("llava")[1], config, OWN)
    batch = encoder.encode_batch(range(3))
    chosen, rejected = (int(batch.responses[view].mask.sum()) for view in ("chosen", "rejected"))
    prompts = int(batch.prompts.mask.sum()) + int(batch.own_image_prompts["image"].mask.sum())
    row = pack(batch, model=None)
    assert row.input_ids.shape[1] == prompts + chosen + rejected == batch.tokens
    assert [len(span.responses) for span in row.spans] == [1] * 6
    # A batch without such a pair is what it was: one prompt, two responses behind it.
    alone = encoder.encode_batch([1])
    assert not alone.own_image_prompts
    assert [len(span.responses) for span in pack(alone, model=None).spans] == [2]


def test_one_response_under_two_images_is_the_visual_term() -> None:
    """Δ of one text under both images is mDPO's conditional margin with the second one given."""
    one = [replace(pair, rejected=pair.chosen, rejected_image=pair.own_image) for pair in OWN[::2]]
    model, processor = build_model("llava")
    losses = {}
    for terms in (["response"], ["visual"]):
        config = make_config({"terms": terms}, rejected_image="given")
        batch = PairEncoder(processor, config, one).encode_batch(range(2))
        policy = Policy(make_moved_model("llava"), config.objective)
        frozen = Policy(model, config.objective)
        losses[terms[0]] = policy(batch, frozen.reference_scores(batch)).loss
    torch.testing.assert_close(losses["response"], losses["visual"], rtol=0, atol=1e-6)


def test_a_training_draws_both_images_anew() -> None:
    drawn = Image.linear_gradient("L").convert("RGB")
    pair = replace(PAIRS[0], own_image=drawn)
    config = make_config("dpo", training={"augment": "released"})
    encoder = PairEncoder(build_model("llava")[1], config, [pair])
    seen = [
        encoder.encode_batch([0], epoch).own_image_prompts["image"].inputs["pixel_values"]
        for epoch in range(4)
    ]
    assert len({values.numpy().tobytes() for values in seen}) > 1
