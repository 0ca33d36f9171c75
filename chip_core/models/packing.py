"""Attention over one packed row: several responses behind one prompt, several prompts, no padding.

A span of the row is `[prompt][response][response]…`. A response's token sees its prompt and its
own response up to itself, and nothing else. Each span is computed by itself, its prompt with the
first response as an ordinary causal sequence: what may not be seen is never multiplied, and no
(T, T) mask is made.

Shapes: T tokens of the row, H heads, d their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: The name under which transformers calls `attention`; without a packing it is its `sdpa`.
NAME = "chip_packed"

#: What some families' attention takes beside queries, keys and values, and this one cannot do.
_REFUSED = ("sliding_window", "softcap", "position_bias", "s_aux")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A prompt and the responses behind it, by their lengths in tokens."""

    prompt: int
    responses: tuple[int, ...]  # one or more


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Let a model's decoder read packed rows for as long as the context is open.

    Everything else that the model is asked in the meantime is computed as before.

    Raises:
        ValueError: the decoder's attention is not the one that this stands in for.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.get_decoder().config
    before = config._attn_implementation
    if before != "sdpa":
        raise ValueError(f"its attention is {before}, not sdpa")
    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: tuple[Span, ...] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks its attention functions to.

    Args:
        module: the attention layer.
        query: (1, H, T, d).
        key: (1, key heads, T, d).
        value: as the keys.
        attention_mask: not looked at where there is a packing.
        scaling: of the products; None: 1 / sqrt(d).
        packing: what lies in the row, in order; None: as `sdpa`.
        others: what else transformers gives its attention functions.

    Returns:
        (1, T, H, d), and no weights.

    Raises:
        ValueError: the layer wants what cannot be done here.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if packing is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return result
    refused = [name for name in _REFUSED if others.get(name) is not None]
    if refused:
        raise ValueError(f"its attention has {', '.join(refused)}")
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    lengths = []  # of the pieces that queries go in: prompt and first response, the others
    for span in packing:
        lengths += [span.prompt + span.responses[0], *span.responses[1:]]
    split = (torch.split(part, lengths, dim=2) for part in (query, key, value))
    pieces = zip(*split, strict=True)
    made = []
    for span in packing:
        queries, keys, values = next(pieces)
        made.append(
            F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)
        )
        prompt_keys, prompt_values = keys[:, :, : span.prompt], values[:, :, : span.prompt]
        for response in span.responses[1:]:
            queries, keys, values = next(pieces)
            seen = torch.ones(
                response, span.prompt + response, dtype=torch.bool, device=query.device
            )
            made.append(
                F.scaled_dot_product_attention(
                    queries,
                    torch.cat([prompt_keys, keys], 2),
                    torch.cat([prompt_values, values], 2),
                    attn_mask=seen.tril_(span.prompt),
                    scale=scaling,
                )
            )
    return torch.cat(made, 2).transpose(1, 2).contiguous(), None
