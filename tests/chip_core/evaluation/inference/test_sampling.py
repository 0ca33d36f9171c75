"""Sampled answers: drawn from the model's distribution, and by their own seed alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from chip_core.config.trial import ModelConfig
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.inference import Decoder, make_batches
from chip_core.evaluation.inference.rows import NEAR_TIE_MARGIN
from chip_core.evaluation.inference.sampling import Sampling, sample_tokens
from chip_core.evaluation.task import Decoding, Item
from chip_core.models import loading

from ... import families

DRAWN = Sampling(temperature=1.2, top_p=0.95, seed=3)


def draw_gumbel(rows: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    waits = torch.empty(rows, size, dtype=torch.float64).exponential_(generator=generator)
    return -waits.log()


def compute_nucleus(logits: list[float], sampling: Sampling) -> list[float]:
    """Compute the distribution that is to be drawn from, in slow and plain steps."""
    weights = [math.exp(logit / sampling.temperature) for logit in logits]
    shares = [weight / sum(weights) for weight in weights]
    before = [sum(other for other in shares if other > share) for share in shares]
    kept = [
        share if above < sampling.top_p else 0.0
        for share, above in zip(shares, before, strict=True)
    ]
    return [share / sum(kept) for share in kept]


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_draws_are_from_the_softmax_within_the_nucleus(top_p: float) -> None:
    sampling = Sampling(temperature=0.7, top_p=top_p)
    logits = [2.0, -1.0, 1.5, 0.3, 1.1, float("-inf")]
    rows = 40_000
    drawn, _ = sample_tokens(
        torch.tensor([logits]).expand(rows, -1), draw_gumbel(rows, 6, 0), sampling
    )
    shares = torch.bincount(drawn, minlength=6) / rows
    for share, expected in zip(shares.tolist(), compute_nucleus(logits, sampling), strict=True):
        # Four standard deviations of a share of 40,000 draws.
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / rows))


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_rounding_turns_no_draw_that_is_called_sure(top_p: float) -> None:
    sampling = Sampling(temperature=0.9, top_p=top_p)
    generator = torch.Generator().manual_seed(1)
    rows, size = 20_000, 12
    logits = torch.randn(rows, size, generator=generator, dtype=torch.float64).round(decimals=1)
    noise = draw_gumbel(rows, size, 2)
    drawn, unsure = sample_tokens(logits, noise, sampling)
    off = NEAR_TIE_MARGIN * logits.abs().amax(-1, keepdim=True) / 2
    turned = torch.zeros(rows, dtype=torch.bool)
    for _ in range(4):
        moved = logits + off * (2 * torch.rand(rows, size, generator=generator) - 1).sign()
        turned |= sample_tokens(moved, noise, sampling)[0] != drawn
    assert turned.any() and not (turned & ~unsure).any()
    assert unsure.float().mean() < 0.25  # else nothing is gained by batches


def draw_answers(
    loaded: tuple[Any, Any], items: list[Item], size: int, share: bool
) -> dict[str, str]:
    decoder = Decoder(
        *loaded, Decoding(max_new_tokens=16), bf16=False, share_prefix=share, sampling=DRAWN
    )
    return {
        item.id: response.text
        for batch in make_batches(items, size=size)
        for item, response in zip(batch.items, decoder.generate_responses(batch), strict=True)
    }


def test_the_batch_changes_no_sample_on_shapes() -> None:
    torch.set_num_threads(1)
    loaded = loading.load(ModelConfig(path="shapes"))
    scenes = BENCHMARKS["shapes"].items("select", data=None, protocol="official")[:5]
    items = [
        Item(id=f"{item.id}#{number}", prompt=item.prompt, pictures=item.pictures)
        for item in scenes
        for number in range(4)
    ]
    alone = draw_answers(loaded, items, 1, False)
    assert len(set(alone.values())) > len(scenes)  # answers to one question differ
    assert draw_answers(loaded, items, 8, True) == alone
    assert draw_answers(loaded, items[7:12], 8, True) == {i.id: alone[i.id] for i in items[7:12]}


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_neither_batch_nor_sharing_changes_a_sample(family: str) -> None:
    loaded = families.build(family)
    alone = draw_answers(loaded, families.make_items(), 1, False)
    assert draw_answers(loaded, families.make_items(), 7, True) == alone
