"""Attention over one packed row: several responses after one prompt, several prompts, no padding.

A span of the row is `[prompt][response][response]…`. A response's token attends to its prompt and
to its own response up to itself, and to nothing else. Each span is computed separately, its prompt
and first response as an ordinary causal sequence: masked products are never computed, and no
(T, T) mask is made.

If there is a kernel for it (CUDA, half precision), all spans are one call per layer, with keys
concatenated as the queries attend to them: the prompt once for each of its responses.

Shapes: T tokens of the row, S of the keys as attended to, H heads, d their size, N sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

#: The name of `attention` in transformers; without a packing it is transformers' `sdpa`.
NAME = "chip_packed"

#: The name of `fused_attention` there.
FUSED = "chip_packed_fused"

#: The dtypes of the fused kernel.
_HALF = (torch.bfloat16, torch.float16)

#: Arguments of some families' attention that this one does not support.
_REFUSED = ("sliding_window", "softcap", "position_bias", "s_aux")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A prompt and the responses after it, by their lengths in tokens."""

    prompt: int
    responses: tuple[int, ...]  # one or more


class Packing:
    """The content of a packed row, as it is passed to every layer.

    torch.compile would trace a tuple of spans and compile code for its lengths only.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        """Create a packing of a row's spans, in order."""
        self.spans = tuple(spans)
        self.sequences: Sequences | None = None  # the input of `fused_attention`

    def lay_out(self, send: Callable[[Tensor], Tensor]) -> None:
        """Prepare the input of `fused_attention`.

        Args:
            send: moves a tensor from the host to the row's device.
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
    """Queries and the keys that they attend to, sequence by sequence.

    A sequence is a prompt with its first response, or a further response. Its queries are its own
    tokens, its keys the prompt's and then its own, and the last query attends to all of them.
    """

    queries: Tensor  # (N + 1,) int32: offsets of the sequences, and the end
    keys: Tensor  # (N + 1,) int32: the same for the keys
    longest_queries: int
    longest_keys: int
    seen: Tensor  # (S,): positions in the row


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def can_fuse(weight: Tensor) -> bool:
    """Return whether there is a kernel for all spans at once on the device of a model's weights."""
    if weight.device.type != "cuda" or weight.dtype not in _HALF:
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401  # new in torch 2.10
    except ImportError:
        return False
    return True


def is_fused(model: Any) -> bool:
    """Return whether a model's decoder computes packed rows in one call per layer."""
    return bool(model.get_decoder().config._attn_implementation == FUSED)


@contextmanager
def packed_attention(model: Any, *, fused: bool = False) -> Iterator[None]:
    """Let a model's decoder read packed rows while the context is open.

    Other calls of the model in the meantime are computed as before.

    Args:
        model: with a decoder.
        fused: whether in one call per layer, if its numbers are in half precision (`can_fuse`).

    Raises:
        ValueError: the decoder's attention is not the one that this replaces.
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
    """Compute attention with the interface of transformers' attention functions, piece by piece.

    Args:
        module: the attention layer.
        query: (1, H, T, d).
        key: (1, key heads, T, d).
        value: as the keys.
        attention_mask: ignored if there is a packing.
        scaling: scale of the products; None: 1 / sqrt(d).
        packing: the content of the row; None: as `sdpa`.
        others: further arguments of transformers' attention functions.

    Returns:
        (1, T, H, d), and no weights.

    Raises:
        ValueError: the layer uses something unsupported.
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
    lengths = []  # of the pieces of queries: prompt and first response, the others
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
    """Compute attention like `attention`, but all spans in one call, with the same signature.

    Without a packing, and in other precisions than the kernel's, it calls `attention`.
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
        sequences: which queries attend to which keys.
        scaling: scale of the products; None: 1 / sqrt(d).
        kernel: a function like `torch.nn.attention.varlen.varlen_attn`; None: that one.
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
        window_size=(-1, 0),  # causal: a sequence's last query attends to its last key
        **grouped,
    )
    return made


def _refuse(others: dict[str, Any]) -> None:
    refused = [name for name in _REFUSED if others.get(name) is not None]
    if refused:
        raise ValueError(f"its attention has {', '.join(refused)}")
