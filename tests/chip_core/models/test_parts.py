"""A tower's output given back: the model says what it says, projector's gradients and all."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.tensors import PairBatch
from chip_core.models import loading
from chip_core.models.adapters import attach_adapters
from chip_core.models.parts import (
    compute_tower_features,
    find_tower_layers,
    find_unread_modules,
    get_tower,
    is_tower_frozen,
    join_features,
    set_trained,
    skip_unread_layers,
)
from chip_core.training.states import compute_response_states

from .. import families

PAIRS = families.make_pairs()

#: What each family's own code reads of its tower, in tiny models.
FIELDS = {
    "llava": {"hidden_states:-2"},
    "llava_next": {"hidden_states:-2"},
    "qwen2_5_vl": {"pooler_output"},
    "qwen3_vl": {"pooler_output", "deepstack_features:0"},
    "idefics3": {"last_hidden_state"},
    "smolvlm": {"last_hidden_state"},
    "muffin": {"pooler_output"},
}

#: Whose projector lies within the vision tower.
WITHIN = loading.PROJECTOR_IN_TOWER


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def built(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return request.param, *families.build(request.param)


def make_config(**changes: Any) -> TrialConfig:
    tree = {"model": "shapes", "objective": "dpo", "training": {"max_length": 256}}
    return TrialConfig.model_validate({**tree, **changes})


def compute_states_and_gradients(
    model: Any, batch: PairBatch
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Compute the hidden states of all responses, and the gradient of all that is trained."""
    states = compute_response_states(model, batch, prefix_sharing=False)
    hidden = torch.cat([states.chosen, states.rejected])
    model.zero_grad(set_to_none=True)
    (hidden * torch.arange(hidden.numel()).cos().view(hidden.shape)).sum().backward()
    return hidden.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("language_model", ["full", "lora"])
def test_a_model_says_the_same_without_looking(
    built: tuple[str, Any, Any], language_model: str
) -> None:
    family, model, processor = built
    projector = "frozen" if family in WITHIN else "trained"
    trial = make_config(language_model=language_model, projector=projector)
    if language_model == "lora":
        model, processor = families.build(family)  # an adapter stays
        model = attach_adapters(model, trial)
    set_trained(model, trial)
    assert is_tower_frozen(model, trial)
    encoder = PairEncoder(processor, trial, PAIRS)
    alone = [
        compute_tower_features(model, encoder.encode_batch([row]).prompts.images)
        for row in range(3)
    ]
    assert set(alone[0]) == FIELDS[family]
    # Images of different sizes: padded, in tiles, in patches.
    batch = encoder.encode_batch([2, 0, 1])
    hidden, gradients = compute_states_and_gradients(model, batch)

    def blind(*given: Any, **options: Any) -> Any:
        raise AssertionError("the tower was asked")

    tower = get_tower(model)
    tower.forward = blind
    try:
        features = join_features([alone[2], alone[0], alone[1]])
        prompts = replace(batch.prompts, features=features)
        given, given_gradients = compute_states_and_gradients(
            model, replace(batch, prompts=prompts)
        )
        with pytest.raises(AssertionError, match="the tower was asked"):
            compute_states_and_gradients(model, batch)
    finally:
        del tower.forward
    assert torch.allclose(given, hidden, atol=2e-5)
    for one, other in zip(given_gradients, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-7


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_layers_that_nothing_reads_are_not_computed(family: str) -> None:
    model, processor = families.build(family)
    set_trained(model, make_config(vision_encoder="trained"))
    batch = PairEncoder(processor, make_config(vision_encoder="trained"), PAIRS).encode_batch(
        [2, 0, 1]
    )
    saved = list(model.state_dict())
    (unread,) = find_unread_modules(model)
    layers = find_tower_layers(model)
    inside: list[str] = []
    for layer in layers.values():
        layer.mlp.register_forward_hook(lambda module, *given: inside.append("computed"))
    hidden, gradients = compute_states_and_gradients(model, batch)
    times = len(inside) // len(layers)
    assert times > 0
    skip_unread_layers(model)
    copied = copy.deepcopy(model)
    for skipping in (model, copied):
        inside.clear()
        again, gradients_again = compute_states_and_gradients(skipping, batch)
        assert len(inside) == times * (len(layers) - 1)
        assert torch.equal(again, hidden)
        assert list(skipping.state_dict()) == saved
        names = [name for name, _ in skipping.named_parameters()]
        for name, one, other in zip(names, gradients_again, gradients, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
            assert not name.startswith(unread) or one is None


def test_a_projector_within_the_tower_is_part_of_it(built: tuple[str, Any, Any]) -> None:
    family, model, _ = built
    assert is_tower_frozen(model, make_config(projector="trained")) == (family not in WITHIN)
    assert is_tower_frozen(model, make_config(projector="lora")) == (family not in WITHIN)
    assert not is_tower_frozen(model, make_config(vision_encoder="lora"))
    assert not is_tower_frozen(model, make_config(vision_encoder="trained"))
    assert not is_tower_frozen(model, make_config(vision_encoder="staged"))
    assert is_tower_frozen(model, make_config(projector="frozen"))
