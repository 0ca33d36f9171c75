"""How rows lie for the decoder; image tokens found by their number: the same states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.tensors import PairBatch, Prompts, Responses, pad_rows
from chip_core.models.packing import Span
from chip_core.models.parts import get_base_decoder
from chip_core.training.states import count_images_on_host, pack, pad

from .. import families


def make_prompts(*rows: list[int]) -> Prompts:
    ids, mask = pad_rows(rows, 0)
    kinds = torch.where(ids == 9, 1, 0)  # 9 stands for an image's token
    inputs = {"pixel_values": torch.arange(len(rows)), "mm_token_type_ids": kinds}
    return Prompts(ids=ids, mask=mask, inputs=inputs)


def make_responses(*rows: list[int]) -> Responses:
    ids, mask = pad_rows(rows, 0)
    return Responses(ids=ids, mask=mask, changed=torch.zeros_like(mask))


PROMPTS = make_prompts([9, 11, 12], [9, 21])
CHOSEN, REJECTED = make_responses([13], [22, 23]), make_responses([14, 15], [24])
BATCH = PairBatch(
    indices=(4, 2), epoch=0, prompts=PROMPTS, chosen=CHOSEN, rejected=REJECTED,
    rejected_image_prompts=None, rejected_image=None,
)  # fmt: skip


def test_padded_rows_have_their_padding_on_the_right() -> None:
    rows = pad(PROMPTS, CHOSEN)
    assert rows.input_ids.tolist() == [[9, 11, 12, 13], [9, 21, 22, 23]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert rows.inputs["mm_token_type_ids"].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0]]
    rows = pad(PROMPTS, REJECTED)
    assert rows.input_ids.tolist() == [[9, 11, 12, 14, 15], [9, 21, 24, 0, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    # 14 is predicted at place 2 of the first row, 15 at 3; 24 at place 1 of the second.
    assert [part.tolist() for part in rows.predicting] == [[0, 0, 1], [2, 3, 1]]


def test_a_packed_row_has_no_padding_and_restarts_positions() -> None:
    row = pack(BATCH, model=None)
    assert row.input_ids.tolist() == [[9, 11, 12, 13, 14, 15, 9, 21, 22, 23, 24]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 2, 3, 2]]
    assert row.inputs["mm_token_type_ids"].tolist() == [[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]]
    assert row.spans == (Span(prompt=3, responses=(1, 2)), Span(prompt=2, responses=(2, 1)))
    chosen, rejected = (part.tolist() for part in row.predicting)
    assert chosen == [2, 7, 8]  # 12 predicts 13, 21 predicts 22, 22 predicts 23
    assert rejected == [2, 4, 7]  # 12 predicts 14, 14 predicts 15, 21 predicts 24


def test_rejected_images_lie_behind_all_else() -> None:
    other = make_prompts([9, 9, 11, 12], [9, 21])  # of another size, so of other tokens
    batch = replace(BATCH, rejected_image_prompts=other, rejected_image=CHOSEN)
    row, alone = pack(batch, model=None), pack(BATCH, model=None)
    length = alone.input_ids.shape[1]
    assert torch.equal(row.input_ids[:, :length], alone.input_ids)
    assert row.input_ids[0, length:].tolist() == [9, 9, 11, 12, 13, 9, 21, 22, 23]
    assert row.positions[0, length:].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert row.inputs["pixel_values"].tolist() == [0, 1, 0, 1]
    assert row.inputs["mm_token_type_ids"].shape == row.input_ids.shape
    assert row.spans[2:] == (Span(prompt=4, responses=(1,)), Span(prompt=2, responses=(2,)))
    assert row.predicting[2].tolist() == [length + 3, length + 6, length + 7]


class PositionModel:
    """A model that counts positions as Qwen-VL does: an image's tokens share one, on three axes."""

    def get_rope_index(
        self, ids: torch.Tensor, attention_mask: torch.Tensor, mm_token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        position = (1 - mm_token_type_ids).cumsum(1) * attention_mask
        return position.expand(3, -1, -1), None


def test_a_models_own_positions_go_on_from_their_largest() -> None:
    batch = replace(BATCH, prompts=make_prompts([9, 9, 9, 11], [9, 21]))
    row = pack(batch, PositionModel())
    assert row.positions.shape == (3, 1, row.input_ids.shape[1])
    #                                   9  9  9 11 13 14 15  9 21 22 23 24
    assert row.positions[0, 0].tolist() == [0, 0, 0, 1, 2, 2, 3, 0, 1, 2, 3, 2]


CONFIG = TrialConfig.model_validate({"model": "x"})


@pytest.fixture(params=sorted(families.FAMILIES))
def decoder_and_rows(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    model, processor = families.build(request.param)
    batch = PairEncoder(processor, CONFIG, families.make_pairs()).encode_batch(range(3))
    return get_base_decoder(model), pad(batch.prompts, batch.chosen)


def compute_states(inner: Any, rows: Any) -> torch.Tensor:
    with torch.no_grad():
        return inner(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, **rows.inputs
        ).last_hidden_state


def test_states_are_transformers_own(decoder_and_rows: tuple[Any, Any]) -> None:
    inner, rows = decoder_and_rows
    own = compute_states(inner, rows)
    with count_images_on_host(inner, rows.host_ids):
        assert torch.equal(compute_states(inner, rows), own)
    assert "get_placeholder_mask" not in vars(inner)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_another_number_of_tokens_than_of_features_is_refused(family: str) -> None:
    model, processor = families.build(family)
    inner = get_base_decoder(model)
    batch = PairEncoder(processor, CONFIG, families.make_pairs()).encode_batch(range(3))
    rows = pad(batch.prompts, batch.chosen)
    fewer = rows.host_ids.clone()
    place = (fewer == inner.config.image_token_id).nonzero()[0].tolist()
    fewer[place[0], place[1]] = 0
    with (
        count_images_on_host(inner, fewer),
        pytest.raises(ValueError, match=r"has \d+ image tokens"),
    ):
        compute_states(inner, rows)
