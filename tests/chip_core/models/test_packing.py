"""Attention over a packed row against the whole matrix with its mask written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chip_core.data.batches import PairEncoder
from chip_core.models.packing import (
    Packing,
    Span,
    attend_sequences,
    attention,
    can_fuse,
    fused_attention,
    is_fused,
    use_packed_attention,
)
from chip_core.training.states import compute_response_states

from .. import families
from ..training.test_exactness import PAIRS, make_config

SPANS = (
    Span(prompt=3, responses=(2, 4)),
    Span(prompt=1, responses=(1,)),
    Span(prompt=2, responses=(3, 1, 2)),
)
#: The same row, token by token: (span, response), response 0 is the prompt.
PLACES = [
    *[(0, 0)] * 3, *[(0, 1)] * 2, *[(0, 2)] * 4,
    (1, 0), (1, 1),
    *[(2, 0)] * 2, *[(2, 1)] * 3, (2, 2), *[(2, 3)] * 2,
]  # fmt: skip


def attend_whole(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Compute softmax(q kᵀ) v, what may not be seen at −∞."""

    def sees(q: int, k: int) -> bool:
        (span, response), (of, kind) = PLACES[q], PLACES[k]
        return span == of and kind in (0, response) and k <= q

    places = range(len(PLACES))
    seen = torch.tensor([[sees(q, k) for k in places] for q in places])
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_packed_attention_equals_the_whole_matrix(groups: int) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens, heads, size = len(PLACES), 4, 6

    def normal(heads: int) -> Tensor:
        made = torch.randn(1, heads, tokens, size, generator=draw, dtype=torch.float64)
        return made.requires_grad_()

    query, key, value = normal(heads), normal(heads // groups), normal(heads // groups)
    layer = SimpleNamespace(num_key_value_groups=groups)
    found, weights = attention(layer, query, key, value, None, scaling=0.3, packing=Packing(SPANS))
    assert weights is None
    assert found.shape == (1, tokens, heads, size)
    repeated = [part.repeat_interleave(groups, 1) for part in (key, value)]
    expected = attend_whole(query, *repeated, scaling=0.3)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    by = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((made * by).sum(), (query, key, value)) for made in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def attend_by_sequence(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor,
    longest_queries: int, longest_keys: int, *,
    scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Compute what `varlen_attn` documents: causal, aligned at the last query and key."""
    assert window_size == (-1, 0)
    assert enable_gqa == (key.shape[1] != query.shape[1])
    assert {queries.dtype, keys.dtype} == {torch.int32}
    assert (queries.diff().max(), keys.diff().max()) == (longest_queries, longest_keys)
    made = []
    for (start, end), (first, last) in zip(
        queries.unfold(0, 2, 1).tolist(), keys.unfold(0, 2, 1).tolist(), strict=True
    ):
        length, seen = end - start, last - first
        mask = torch.ones(length, seen, dtype=torch.bool).tril(seen - length)
        cut = query[start:end], key[first:last], value[first:last]
        own = (part.transpose(0, 1) for part in cut)
        made.append(
            F.scaled_dot_product_attention(*own, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        )
    return torch.cat(made, 1).transpose(0, 1)


def test_sequences_of_keys_as_they_are_seen_give_what_the_pieces_give() -> None:
    """The row is laid out by hand: prompts 0-2, 9 and 11-12, and what lies behind them."""
    packing = Packing(SPANS)
    packing.prepare_fused(lambda value: value)
    sequences = packing.sequences
    assert sequences is not None
    assert sequences.queries.tolist() == [0, 5, 9, 11, 16, 17, 19]
    assert sequences.keys.tolist() == [0, 5, 12, 14, 19, 22, 26]
    assert sequences.key_positions.tolist() == [
        0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10,
        11, 12, 13, 14, 15, 11, 12, 16, 11, 12, 17, 18,
    ]  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 19, 6), (1, 2, 19, 6), (1, 2, 19, 6))
    given = [
        torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes
    ]
    layer = SimpleNamespace(num_key_value_groups=2)
    pieces, _ = attention(layer, *given, None, scaling=0.3, packing=packing)
    rows = [part[0].transpose(0, 1) for part in given]
    fused = attend_sequences(*rows, sequences, scaling=0.3, kernel=attend_by_sequence)[None]
    assert torch.allclose(fused, pieces, rtol=1e-12, atol=1e-13)
    by = torch.randn(fused.shape, generator=draw, dtype=torch.float64)
    gradients = [torch.autograd.grad((made * by).sum(), given) for made in (fused, pieces)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


def test_a_models_rows_are_laid_out_for_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def kernel(*given: object, **options: object) -> Tensor:
        calls.append(given)
        return attend_by_sequence(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    model, processor = families.build("llava")
    model = model.bfloat16().eval()
    batch = PairEncoder(processor, make_config(), PAIRS).encode_batch(range(3))
    found = []
    for fused in (False, True):
        with torch.no_grad(), use_packed_attention(model, fused=fused):
            assert is_fused(model) == fused
            found.append(compute_response_states(model, batch, prefix_sharing=True).views)
    assert len(calls) == model.get_decoder().config.num_hidden_layers  # one call a layer
    assert not is_fused(model)
    for view, states in found[0].items():
        assert float((found[1][view] - states).norm() / states.norm()) < 1e-2


def test_only_a_gpus_half_precision_is_fused() -> None:
    assert not can_fuse(torch.zeros(1))
    assert not can_fuse(torch.zeros(1, dtype=torch.bfloat16))


@pytest.mark.gpu
def test_the_fused_kernel_is_no_farther_from_float32_than_the_pieces() -> None:
    packing = Packing(SPANS)
    packing.prepare_fused(lambda value: value.cuda())
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 19, 64), (1, 2, 19, 64), (1, 2, 19, 64))
    given = [torch.randn(shape, generator=draw).bfloat16().cuda() for shape in shapes]
    assert can_fuse(given[0])
    layer = SimpleNamespace(num_key_value_groups=2)
    apart = []
    true, of_true = _with_gradients(attention, layer, [part.float() for part in given], packing)
    for way in (attention, fused_attention):
        made, gradients = _with_gradients(way, layer, given, packing)
        pairs = zip([made, *gradients], [true, *of_true], strict=True)
        apart.append([float((a.float() - b).norm() / b.norm()) for a, b in pairs])
    for pieces, fused in zip(*apart, strict=True):
        assert fused <= 1.25 * pieces


def _with_gradients(way: object, layer: object, given: list[Tensor], packing: Packing) -> object:
    leaves = [part.clone().requires_grad_() for part in given]
    made, _ = way(layer, *leaves, None, scaling=0.125, packing=packing)  # type: ignore[operator]
    by = torch.arange(made.numel(), device=made.device).cos().view(made.shape).to(made.dtype)
    return made.detach(), torch.autograd.grad((made * by).sum(), leaves)
