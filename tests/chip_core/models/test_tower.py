"""A tower's output given back: the model says what it says, projector's gradients and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.tensors import PairBatch
from chip_core.models import loading
from chip_core.models.adapters import attach_adapters
from chip_core.models.parts import set_trained
from chip_core.models.tower import is_frozen, join_features, tower_features, tower_of
from chip_core.training.states import response_states

from .. import families

PAIRS = families.pairs()

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


def config(**changes: Any) -> TrialConfig:
    tree = {"model": "shapes", "objective": "dpo", "training": {"max_length": 256}}
    return TrialConfig.model_validate({**tree, **changes})


def run(model: Any, batch: PairBatch) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Hidden states of all responses, and the gradient of all that is trained."""
    states = response_states(model, batch, prefix_sharing=False)
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
    trial = config(language_model=language_model, projector=projector)
    if language_model == "lora":
        model, processor = families.build(family)  # an adapter stays
        model = attach_adapters(model, trial)
    set_trained(model, trial)
    assert is_frozen(model, trial)
    encoder = PairEncoder(processor, trial, PAIRS)
    alone = [tower_features(model, encoder.batch([row]).prompts.images) for row in range(3)]
    assert set(alone[0]) == FIELDS[family]
    batch = encoder.batch([2, 0, 1])  # images of different sizes: padded, in tiles, in patches
    hidden, gradients = run(model, batch)

    def blind(*given: Any, **options: Any) -> Any:
        raise AssertionError("the tower was asked")

    tower = tower_of(model)
    tower.forward = blind
    try:
        features = join_features([alone[2], alone[0], alone[1]])
        prompts = replace(batch.prompts, features=features)
        given, given_gradients = run(model, replace(batch, prompts=prompts))
        with pytest.raises(AssertionError, match="the tower was asked"):
            run(model, batch)
    finally:
        del tower.forward
    assert torch.allclose(given, hidden, atol=2e-5)
    for one, other in zip(given_gradients, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-7


def test_a_projector_within_the_tower_is_part_of_it(built: tuple[str, Any, Any]) -> None:
    family, model, _ = built
    assert is_frozen(model, config(projector="trained")) == (family not in WITHIN)
    assert is_frozen(model, config(projector="lora")) == (family not in WITHIN)
    assert not is_frozen(model, config(vision_encoder="lora"))
    assert not is_frozen(model, config(vision_encoder="trained"))
    assert not is_frozen(model, config(vision_encoder="staged"))
    assert is_frozen(model, config(projector="frozen"))
