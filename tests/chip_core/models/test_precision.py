"""What weights are held in, and a look in fp32 at a model that is held in bf16."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.models.precision import compute_in_fp32, convert_weights, get_dtype, match_dtype
from chip_core.training.states import compute_response_states

from .. import families

CONFIG = TrialConfig.model_validate({"model": "x"})


@pytest.fixture(params=sorted(families.FAMILIES))
def built(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return families.build(request.param)


def test_a_look_in_fp32_is_at_a_model_of_the_same_weights_in_fp32(built: tuple[Any, Any]) -> None:
    model, processor = convert_weights(built[0], "bf16"), built[1]
    twin = convert_weights(copy.deepcopy(model), "fp32")
    batch = PairEncoder(processor, CONFIG, families.make_pairs()).encode_batch(range(3))
    before = dict(model.named_parameters())
    vectors = [weight for weight in model.get_decoder().parameters() if weight.ndim == 1]
    theirs = [weight for weight in twin.get_decoder().parameters() if weight.ndim == 1]
    with compute_in_fp32(model, vectors) as leaves:
        ours = compute_response_states(model, batch, prefix_sharing=False).chosen
        found = torch.autograd.grad(ours.square().sum(), leaves)
    true = compute_response_states(twin, batch, prefix_sharing=False).chosen
    expected = torch.autograd.grad(true.square().sum(), theirs)
    assert ours.dtype == torch.float32
    assert float((ours - true).detach().norm() / true.detach().norm()) < 1e-6
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm()) <= 1e-5 * float(other.norm())
    held = compute_response_states(model, batch, prefix_sharing=False).chosen
    assert held.dtype == torch.bfloat16
    assert float((held.float() - true).detach().norm() / true.detach().norm()) > 1e-3
    # Afterwards it is as it was: the same parameters, in their order.
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_a_model_in_fp32_computes_with_its_own_weights() -> None:
    model, _ = families.build("llava")
    vector = next(weight for weight in model.parameters() if weight.ndim == 1)
    with compute_in_fp32(model, [vector]) as leaves:
        assert leaves[0] is vector


def test_weights_are_restored_when_something_fails_within() -> None:
    model = convert_weights(families.build("llava")[0], "bf16")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(KeyError), compute_in_fp32(model):
        raise KeyError
    assert [name for name, _ in model.named_parameters()] == names


def test_pixels_are_rounded_for_a_model_in_bf16_alone() -> None:
    model, _ = families.build("llava")
    given = {"pixel_values": torch.rand(2), "image_sizes": torch.tensor([3])}
    assert match_dtype(given, model)["pixel_values"] is given["pixel_values"]
    convert_weights(model, "bf16")
    assert get_dtype(model) == torch.bfloat16
    made = match_dtype(given, model)
    assert made["pixel_values"].dtype == torch.bfloat16
    assert made["image_sizes"] is given["image_sizes"]


def test_buffers_stay_in_fp32() -> None:
    model = convert_weights(families.build("llava")[0], "bf16")
    rotary = model.get_decoder().rotary_emb.inv_freq
    assert rotary.dtype == torch.float32
