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
PACKED_ATTENTION = "chip_packed"

#: The name of `fused_attention` there.
FUSED_ATTENTION = "chip_packed_fused"

#: The dtypes of the fused kernel.
_HALF_DTYPES = (torch.bfloat16, torch.float16)

#: Arguments of some families' attention that this one does not support.
_UNSUPPORTED_ARGUMENTS = ("sliding_window", "softcap", "position_bias", "s_aux")


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

    def prepare_fused(self, to_device: Callable[[Tensor], Tensor]) -> None:
        """Prepare the input of `fused_attention`.

        Args:
            to_device: moves a tensor from the host to the row's device.
        """
        queries, keys, key_positions, start = [], [], [], 0
        for span in self.spans:
            prompt_range = range(start, start + span.prompt)
            start += span.prompt
            for index, response in enumerate(span.responses):
                response_range = range(start, start + response)
                start += response
                queries.append(response + (0 if index else span.prompt))
                keys.append(span.prompt + response)
                key_positions += [*prompt_range, *response_range]
        self.sequences = Sequences(
            queries=to_device(_cumulative_lengths(queries)),
            keys=to_device(_cumulative_lengths(keys)),
            max_query_length=max(queries),
            max_key_length=max(keys),
            key_positions=to_device(torch.tensor(key_positions)),
        )


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Queries and the keys that they attend to, sequence by sequence.

    A sequence is a prompt with its first response, or a further response. Its queries are its own
    tokens, its keys the prompt's and then its own, and the last query attends to all of them.
    """

    queries: Tensor  # (N + 1,) int32: offsets of the sequences, and the end
    keys: Tensor  # (N + 1,) int32: the same for the keys
    max_query_length: int
    max_key_length: int
    key_positions: Tensor  # (S,): positions in the row


def _cumulative_lengths(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def can_fuse(weight: Tensor) -> bool:
    """Return whether there is a kernel for all spans at once on the device of a model's weights."""
    if weight.device.type != "cuda" or weight.dtype not in _HALF_DTYPES:
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401  # new in torch 2.10
    except ImportError:
        return False
    return True


def is_fused(model: Any) -> bool:
    """Return whether a model's decoder computes packed rows in one call per layer."""
    return bool(model.get_decoder().config._attn_implementation == FUSED_ATTENTION)


@contextmanager
def use_packed_attention(model: Any, *, fused: bool = False) -> Iterator[None]:
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
    previous = config._attn_implementation
    if previous != "sdpa":
        raise ValueError(f"its attention is {previous}, not sdpa")
    for name, function in ((PACKED_ATTENTION, attention), (FUSED_ATTENTION, fused_attention)):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    config._attn_implementation = FUSED_ATTENTION if fused else PACKED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = previous


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
    _reject_unsupported(others)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    lengths = []  # queries in pieces: prompt with first response, other responses
    for span in packing.spans:
        lengths += [span.prompt + span.responses[0], *span.responses[1:]]
    split_parts = (torch.split(part, lengths, dim=2) for part in (query, key, value))
    pieces = zip(*split_parts, strict=True)
    outputs = []
    for span in packing.spans:
        queries, keys, values = next(pieces)
        outputs.append(
            F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)
        )
        prompt_keys, prompt_values = keys[:, :, : span.prompt], values[:, :, : span.prompt]
        for response in span.responses[1:]:
            queries, keys, values = next(pieces)
            mask = torch.ones(
                response, span.prompt + response, dtype=torch.bool, device=query.device
            )
            outputs.append(
                F.scaled_dot_product_attention(
                    queries,
                    torch.cat([prompt_keys, keys], 2),
                    torch.cat([prompt_values, values], 2),
                    attn_mask=mask.tril_(span.prompt),
                    scale=scaling,
                )
            )
    return torch.cat(outputs, 2).transpose(1, 2).contiguous(), None


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
    if packing is None or query.dtype not in _HALF_DTYPES:
        return attention(
            module, query, key, value, attention_mask, scaling=scaling, packing=packing, **others
        )
    _reject_unsupported(others)
    assert packing.sequences is not None, "the row was not laid out for it"
    output = attend_sequences(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing.sequences,
        scaling=scaling,
    )
    return output.unsqueeze(0), None


def attend_sequences(
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
    kernel_function = kernel
    if kernel_function is None:
        from torch.nn.attention import varlen

        kernel_function = cast("Callable[..., Any]", varlen.varlen_attn)
    gqa_options = {} if key.shape[1] == query.shape[1] else {"enable_gqa": True}
    output: Tensor = kernel_function(
        query,
        key.index_select(0, sequences.key_positions),
        value.index_select(0, sequences.key_positions),
        sequences.queries,
        sequences.keys,
        sequences.max_query_length,
        sequences.max_key_length,
        scale=scaling,
        window_size=(-1, 0),  # causal: a sequence's last query attends to its last key
        **gqa_options,
    )
    return output


def _reject_unsupported(arguments: dict[str, Any]) -> None:
    unsupported = [name for name in _UNSUPPORTED_ARGUMENTS if arguments.get(name) is not None]
    if unsupported:
        raise ValueError(f"its attention has {', '.join(unsupported)}")
