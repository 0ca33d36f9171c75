"""Attention over a packed row against the whole matrix with its mask written out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from chip_core.models.packing import Span, attention

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


def whole(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(q kᵀ) v, what may not be seen at −∞."""

    def sees(q: int, k: int) -> bool:
        (span, response), (of, kind) = PLACES[q], PLACES[k]
        return span == of and kind in (0, response) and k <= q

    places = range(len(PLACES))
    seen = torch.tensor([[sees(q, k) for k in places] for q in places])
    scores = (query @ key.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_what_the_whole_matrix_gives(groups: int) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens, heads, size = len(PLACES), 4, 6

    def normal(heads: int) -> Tensor:
        made = torch.randn(1, heads, tokens, size, generator=draw, dtype=torch.float64)
        return made.requires_grad_()

    query, key, value = normal(heads), normal(heads // groups), normal(heads // groups)
    layer = SimpleNamespace(num_key_value_groups=groups)
    found, weights = attention(layer, query, key, value, None, scaling=0.3, packing=SPANS)
    assert weights is None
    assert found.shape == (1, tokens, heads, size)
    repeated = [part.repeat_interleave(groups, 1) for part in (key, value)]
    expected = whole(query, *repeated, scaling=0.3)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    by = torch.randn(found.shape, generator=draw, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((made * by).sum(), (query, key, value)) for made in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)
