"""Image tokens found by their number on the host: the same states, and the same complaint."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.models.parts import without_head
from chip_core.training.layout import pad
from chip_core.training.states import counted_on_host

from .. import families

CONFIG = TrialConfig.model_validate({"model": "x"})


@pytest.fixture(params=sorted(families.FAMILIES))
def made(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model, processor = families.build(request.param)
    batch = PairEncoder(processor, CONFIG, families.pairs()).batch(range(3))
    return without_head(model), pad(batch.prompts, batch.chosen)


def states(inner: Any, rows: Any) -> torch.Tensor:
    with torch.no_grad():
        return inner(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, **rows.inputs
        ).last_hidden_state


def test_states_are_transformers_own(made: tuple[Any, Any]) -> None:
    inner, rows = made
    own = states(inner, rows)
    with counted_on_host(inner, rows.host_ids):
        assert torch.equal(states(inner, rows), own)
    assert "get_placeholder_mask" not in vars(inner)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_another_number_of_tokens_than_of_features_is_refused(family: str) -> None:
    model, processor = families.build(family)
    inner = without_head(model)
    batch = PairEncoder(processor, CONFIG, families.pairs()).batch(range(3))
    rows = pad(batch.prompts, batch.chosen)
    fewer = rows.host_ids.clone()
    place = (fewer == inner.config.image_token_id).nonzero()[0].tolist()
    fewer[place[0], place[1]] = 0
    with counted_on_host(inner, fewer), pytest.raises(ValueError, match=r"has \d+ image tokens"):
        states(inner, rows)
