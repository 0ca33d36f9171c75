"""Keys and values that grow in place hold what transformers' own layers hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer

from chip_core.evaluation.inference.kv_cache import (
    STRIDE,
    CachePositions,
    GrowingLayer,
    IndexedLayer,
    get_returned_cache,
    make_cache_argument,
    make_growing_cache,
)

ROWS, HEADS, WIDTH = 3, 2, 4


class ModelStub:
    """As much of a model as a cache asks for."""

    def __init__(self, config: object) -> None:
        self.config = config


def draw_tokens(count: int, *, rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, HEADS, count, WIDTH)


def test_a_layer_holds_all_that_was_added_to_it() -> None:
    ours, theirs = GrowingLayer(), DynamicLayer()
    for count in (7, *[1] * (2 * STRIDE + 3), 5):  # over the room that it made for itself twice
        new = draw_tokens(count), draw_tokens(count)
        for got, wanted in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(got, wanted)
    assert ours.get_seq_length() == theirs.get_seq_length() == 7 + 2 * STRIDE + 3 + 5


def test_a_token_is_written_and_the_others_are_not_copied() -> None:
    layer = GrowingLayer()
    layer.update(draw_tokens(7), draw_tokens(7))
    layer.update(draw_tokens(1), draw_tokens(1))
    before = layer.keys.data_ptr(), layer.values.data_ptr()
    for _ in range(STRIDE - 1):
        layer.update(draw_tokens(1), draw_tokens(1))
    assert (layer.keys.data_ptr(), layer.values.data_ptr()) == before


@pytest.mark.parametrize("change", ["rows", "crop", "reset"])
def test_what_somebody_changed_is_what_it_goes_on_from(change: str) -> None:
    ours, theirs = GrowingLayer(), DynamicLayer()
    for layer in (ours, theirs):
        torch.manual_seed(0)
        layer.update(draw_tokens(5), draw_tokens(5))
        layer.update(draw_tokens(1), draw_tokens(1))
        if change == "rows":
            layer.batch_select_indices(torch.tensor([2, 0]))
        elif change == "crop":
            layer.crop(-2)
        else:
            layer.reset()
        for _ in range(2):
            new = draw_tokens(1, rows=2 if change == "rows" else ROWS)
            layer.update(new, new + 1)
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


def test_rows_that_are_chosen_have_room_for_the_next_tokens() -> None:
    ours, theirs, rows = GrowingLayer(), DynamicLayer(), torch.tensor([2, 0, 0, 1])
    write_prefix, new = draw_tokens(5), draw_tokens(3, rows=4)
    for layer in (ours, theirs):
        layer.update(write_prefix, write_prefix + 1)
        layer.batch_select_indices(rows)
    before = ours.keys.data_ptr(), ours.values.data_ptr()
    assert torch.equal(ours.keys, theirs.keys)
    for got, wanted in zip(ours.update(new, -new), theirs.update(new, -new), strict=True):
        assert torch.equal(got, wanted)
    assert (ours.keys.data_ptr(), ours.values.data_ptr()) == before


def test_only_layers_that_keep_every_token_grow_in_place() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    full = make_growing_cache(ModelStub(LlamaConfig(**sizes)))
    assert [type(layer) for layer in full.layers] == [GrowingLayer, GrowingLayer]
    sliding = make_growing_cache(ModelStub(MistralConfig(**sizes, sliding_window=16)))
    assert isinstance(sliding, DynamicCache)
    assert not any(isinstance(layer, GrowingLayer) for layer in sliding.layers)


def test_a_placed_layer_writes_each_row_where_it_has_room() -> None:
    """Against a table that is filled entry by entry; rows come in, room grows, rows are left."""
    positions = CachePositions()
    layer, prefilled = IndexedLayer(positions), DynamicLayer()
    prefilled.update(draw_tokens(4, rows=2), draw_tokens(4, rows=2))
    expected = torch.zeros(2, 3, HEADS, 12, WIDTH)  # keys and values
    layer.reserve(prefilled, 3, 8)
    layer.write_prefix(torch.tensor([2, 0]), prefilled)
    expected[:, [2, 0], :, :4] = torch.stack([prefilled.keys, prefilled.values])
    for columns, end in (([[4, 5], [0, 1], [6, 4]], 7), ([[6, 7], [2, 3], [8, 9]], 10)):
        layer.reserve(layer, 3, end + 2)
        new = draw_tokens(2), draw_tokens(2)
        positions.assign(torch.tensor(columns), end)
        held = layer.update(*new)
        for row, own in enumerate(columns):
            for place, column in enumerate(own):
                for which in (0, 1):
                    expected[which, row, :, column] = new[which][row, :, place]
        assert torch.equal(torch.stack(held), expected[:, :, :, :end])
        assert layer.get_seq_length() == end
    layer.select_rows(torch.tensor([2, 1]))
    positions.assign(torch.tensor([[10], [10]]), 11)
    held = layer.update(new := draw_tokens(1, rows=2), new)
    assert torch.equal(torch.stack(held)[..., :10, :], expected[:, [2, 1], :, :10])
    assert torch.equal(held[0][:, :, 10:], new)


class CacheModel:
    """A model of transformers since 5.24."""

    def forward(self, input_ids: Any, cache: Any = None) -> None: ...


class PastKeyValuesModel:
    """A model of an earlier transformers."""

    def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...


def test_a_cache_goes_by_the_name_that_the_model_has_for_it() -> None:
    assert make_cache_argument(CacheModel(), 1) == {"cache": 1}
    assert make_cache_argument(PastKeyValuesModel(), 1) == {"past_key_values": 1}
    assert get_returned_cache(SimpleNamespace(cache=1)) == 1
    assert get_returned_cache(SimpleNamespace(past_key_values=1)) == 1
