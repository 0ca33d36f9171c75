"""Presets that are sums of losses of margins, as they are trained: against the plain truth."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import PreferencePair
from chip_core.models.packing import packed_attention
from chip_core.models.parts import set_trained
from chip_core.objectives.methods import METHODS
from chip_core.training.policy import Policy

from .. import families
from ..plain import plain_loss

OBJECTIVES: dict[str, Any] = {
    **{name: name for name in METHODS if ":" not in name},
    "rdpo_released": {"preset": "rdpo", "form": "released"},
    "rdpo": "rdpo",
    "bco_pair_shift": {"preset": "bco_pair", "method": {"shift": True}},
    "mpo_shift": {"preset": "mpo", "method": {"shift": True}},
    "tpo_multiplied": {"preset": "tpo", "method": {"token_weights": "multiplied"}},
    "vdpo_reference": {"preset": "vdpo", "method": {"guidance": "reference", "gamma": 1.5}},
    "two of TRL's": {"preset": "mpo", "method": {"losses": {"aot": 0.5, "hinge": 1.0}}},
}


def full_pairs() -> list[PreferencePair]:
    """Pairs with all that an objective may read."""
    made = []
    for number, pair in enumerate(families.pairs()):
        other = ["a blue tree .", "the dog is on a red car .", "a cat ."][number]
        scores: dict[str, Any] = {
            "clip_scores/chosen": 0.7, "clip_scores/rejected": 0.2 + 0.3 * number,
            "image_text_scores/chosen": 0.4 * number, "image_text_scores/rejected": 0.1,
            "opa_scores/rejected_score": [(pair.rejected, 1.5)],
            "opa_scores/revised_score": [(other[:5], 2.5), (other[5:], 1.0)],
            "opa_scores/revised_image": [(other, 3.0)],
        }  # fmt: skip
        made.append(
            dataclasses.replace(
                pair,
                other=other,
                second_image=Image.new("RGB", (40 + 9 * number, 50), (20 * number, 90, 10)),
                second_prompt="what is on the car ?" if number else None,
                scores=scores,
            )
        )
    return made


PAIRS = full_pairs()


@cache
def built(family: str) -> tuple[Any, Any]:
    return families.build(family)


def moved(family: str) -> Any:
    model = copy.deepcopy(built(family)[0])
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=draw)
    return model


def gradient(loss: torch.Tensor, trained: list[Any]) -> torch.Tensor:
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(parameter) if one is None else one).flatten()
            for parameter, one in zip(trained, found, strict=True)
        ]
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_step_equals_the_plain_truth(family: str, name: str) -> None:
    config = TrialConfig.model_validate(
        {"model": "x", "objective": OBJECTIVES[name], "vision_encoder": "trained"}
    )
    reference, processor = built(family)
    batch = PairEncoder(processor, config, PAIRS).batch(range(3))
    model = moved(family)
    trained = set_trained(model, config)
    torch.manual_seed(0)  # DAMA draws
    true = plain_loss(model, reference, batch, config, processor.tokenizer.eos_token_id)
    true_gradient = gradient(true, trained)
    for shared in (False, True):
        policy = Policy(model, config.objective, prefix_sharing=shared, logits_chunk=5)
        frozen = Policy(copy.deepcopy(reference), config.objective, prefix_sharing=shared)
        with ExitStack() as stack:
            for each in (policy, frozen) if shared else ():
                stack.enter_context(packed_attention(each.model))
            torch.manual_seed(0)
            loss = policy(batch, frozen.reference_scores(batch), frozen.head).loss.mean()
            found = gradient(loss, trained)
        assert loss.item() == pytest.approx(true.item(), rel=1e-5)
        assert float((found - true_gradient).norm()) <= 1e-5 * float(true_gradient.norm())
