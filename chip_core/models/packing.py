"""Attention over one packed row: several responses behind one prompt, several prompts, no padding.

A span of the row is `[prompt][response][response]…`. A response's token sees its prompt and its
own response up to itself, and nothing else. Each span is computed by itself, its prompt with the
first response as an ordinary causal sequence: what may not be seen is never multiplied, and no
(T, T) mask is made.

Where there is a kernel for it (CUDA, half precision), all spans are one call a layer, whose keys
are laid behind each other as the queries see them: the prompt once for each of its responses.

Shapes: T tokens of the row, S of the keys as they are seen, H heads, d their size, N sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

#: The name under which transformers calls `attention`; without a packing it is its `sdpa`.
NAME = "chip_packed"

#: The same of `fused_attention`.
FUSED = "chip_packed_fused"

#: What the fused kernel computes in.
_HALF = (torch.bfloat16, torch.float16)

#: What some families' attention takes beside queries, keys and values, and this one cannot do.
_REFUSED = ("sliding_window", "softcap", "position_bias", "s_aux")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A prompt and the responses behind it, by their lengths in tokens."""

    prompt: int
    responses: tuple[int, ...]  # one or more


class Packing:
    """What lies in a packed row, as it is handed to every layer.

    A tuple of spans would be looked into by a compiler, which makes code for its lengths alone.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        """Take what lies in a row, in order."""
        self.spans = tuple(spans)
        self.sequences: Sequences | None = None  # what `fused_attention` goes by

    def lay_out(self, send: Callable[[Tensor], Tensor]) -> None:
        """Make ready what `fused_attention` goes by.

        Args:
            send: brings a tensor from the host to the row's device.
        """
        queries, keys, seen, start = [], [], [], 0
        for span in self.spans:
            prompt = range(start, start + span.prompt)
            start += span.prompt
            for number, response in enumerate(span.responses):
                own = range(start, start + response)
                start += response
                queries.append(response + (0 if number else span.prompt))
                keys.append(span.prompt + response)
                seen += [*prompt, *own]
        self.sequences = Sequences(
            queries=send(_ends(queries)),
            keys=send(_ends(keys)),
            longest_queries=max(queries),
            longest_keys=max(keys),
            seen=send(torch.tensor(seen)),
        )


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Queries and the keys that they see, sequence by sequence.

    A sequence is a prompt with its first response, or a further response. Its queries are its own
    tokens, its keys the prompt's and then its own, and the last query sees them all.
    """

    queries: Tensor  # (N + 1,) int32: where each sequence's begin, and the last one's end
    keys: Tensor  # (N + 1,) int32: the same of the keys
    longest_queries: int
    longest_keys: int
    seen: Tensor  # (S,): places in the row


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def can_fuse(weight: Tensor) -> bool:
    """Return whether there is a kernel for all spans at once where a model's weights lie."""
    if weight.device.type != "cuda" or weight.dtype not in _HALF:
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401  # torch 2.10 has it first
    except ImportError:
        return False
    return True


def is_fused(model: Any) -> bool:
    """Return whether a model's decoder computes packed rows in one call a layer."""
    return bool(model.get_decoder().config._attn_implementation == FUSED)


@contextmanager
def packed_attention(model: Any, *, fused: bool = False) -> Iterator[None]:
    """Let a model's decoder read packed rows for as long as the context is open.

    Everything else that the model is asked in the meantime is computed as before.

    Args:
        model: with a decoder.
        fused: whether in one call a layer, where its numbers are in half precision (`can_fuse`).

    Raises:
        ValueError: the decoder's attention is not the one that this stands in for.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.get_decoder().config
    before = config._attn_implementation
    if before != "sdpa":
        raise ValueError(f"its attention is {before}, not sdpa")
    for name, function in ((NAME, attention), (FUSED, fused_attention)):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    config._attn_implementation = FUSED if fused else NAME
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
    packing: Packing | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers asks its attention functions to, piece by piece.

    Args:
        module: the attention layer.
        query: (1, H, T, d).
        key: (1, key heads, T, d).
        value: as the keys.
        attention_mask: not looked at where there is a packing.
        scaling: of the products; None: 1 / sqrt(d).
        packing: what lies in the row; None: as `sdpa`.
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
    _refuse(others)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    lengths = []  # of the pieces that queries go in: prompt and first response, the others
    for span in packing.spans:
        lengths += [span.prompt + span.responses[0], *span.responses[1:]]
    split = (torch.split(part, lengths, dim=2) for part in (query, key, value))
    pieces = zip(*split, strict=True)
    made = []
    for span in packing.spans:
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


def fused_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention as `attention` does, all spans in one call; its arguments and results.

    Without a packing, and in other precisions than the kernel's, it is `attention` itself.
    """
    if packing is None or query.dtype not in _HALF:
        return attention(
            module, query, key, value, attention_mask, scaling=scaling, packing=packing, **others
        )
    _refuse(others)
    assert packing.sequences is not None, "the row was not laid out for it"
    made = over_sequences(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing.sequences,
        scaling=scaling,
    )
    return made.unsqueeze(0), None


def over_sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences,
    *,
    scaling: float | None,
    kernel: Callable[..., Any] | None = None,
) -> Tensor:
    """Return attention over sequences of one row, (T, H, d).

    Args:
        query: (T, H, d).
        key: (T, key heads, d).
        value: as the keys.
        sequences: which queries see which keys.
        scaling: of the products; None: 1 / sqrt(d).
        kernel: takes what `torch.nn.attention.varlen.varlen_attn` takes; None: that.
    """
    attend = kernel
    if attend is None:
        from torch.nn.attention import varlen

        attend = cast("Callable[..., Any]", varlen.varlen_attn)
    grouped = {} if key.shape[1] == query.shape[1] else {"enable_gqa": True}
    made: Tensor = attend(
        query,
        key.index_select(0, sequences.seen),
        value.index_select(0, sequences.seen),
        sequences.queries,
        sequences.keys,
        sequences.longest_queries,
        sequences.longest_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal: a sequence's last query sees its last key
        **grouped,
    )
    return made


def _refuse(others: dict[str, Any]) -> None:
    refused = [name for name in _REFUSED if others.get(name) is not None]
    if refused:
        raise ValueError(f"its attention has {', '.join(refused)}")
