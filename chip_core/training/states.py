"""The one way to the hidden states that predict a batch's responses.

Policy, reference and stored reference passes all take it, so that they round alike.

Shapes: B pairs, D hidden, N tokens of all of a batch's responses of one kind, row after row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.models.parts import without_head
from chip_core.models.placeholders import counted_on_host
from chip_core.models.precision import as_held
from chip_core.models.tower import Features, inject_cached_features, join_features, tower_features
from chip_core.training.layout import PackedRow, pack, pack_prompts, pad


@dataclass(frozen=True, kw_only=True)
class ResponseStates:
    """The decoder's last hidden states that predict response tokens; no padding.

    Row n is of the n-th true entry of the batch's mask of that response (row-major), so that
    `Responses.ids[Responses.mask]` are the tokens predicted.
    """

    chosen: Tensor  # (N, D)
    rejected: Tensor  # (N, D)
    rejected_image: Tensor | None = None  # (N, D), the chosen response under the rejected image


def response_states(model: Any, batch: PairBatch, *, prefix_sharing: bool) -> ResponseStates:
    """Compute the hidden states that predict a batch's responses.

    Args:
        model: the policy or a reference, with or without adapters.
        batch: on the model's device.
        prefix_sharing: whether all is computed in one packed row, chosen and rejected behind one
            prompt; the model must be within `packed_attention`. Else one pass a response.
    """
    inner = without_head(model)
    if prefix_sharing:
        return _packed(inner, batch)
    rejected_image = None
    if batch.rejected_image_prompts is not None and batch.rejected_image is not None:
        rejected_image = _padded(inner, batch.rejected_image_prompts, batch.rejected_image)
    return ResponseStates(
        chosen=_padded(inner, batch.prompts, batch.chosen),
        rejected=_padded(inner, batch.prompts, batch.rejected),
        rejected_image=rejected_image,
    )


def rejected_image_states(model: Any, batch: PairBatch, *, prefix_sharing: bool) -> Tensor:
    """Compute `ResponseStates.rejected_image` alone; see `response_states`."""
    prompts, responses = batch.rejected_image_prompts, batch.rejected_image
    assert prompts is not None and responses is not None
    inner = without_head(model)
    if not prefix_sharing:
        return _padded(inner, prompts, responses)
    with inject_cached_features(inner, prompts.features):
        (states,) = _of_row(inner, pack_prompts(prompts, (responses,), inner))
    return states


def _padded(inner: Any, prompts: Prompts, responses: Responses) -> Tensor:
    rows = pad(prompts, responses)
    with (
        inject_cached_features(inner, prompts.features),
        counted_on_host(inner, rows.host_ids),
    ):
        hidden: Tensor = inner(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
            **as_held(rows.inputs, inner),
        ).last_hidden_state
    return hidden[rows.predicting]


def _packed(inner: Any, batch: PairBatch) -> ResponseStates:
    prompts = [batch.prompts]
    if batch.rejected_image_prompts is not None:
        prompts.append(batch.rejected_image_prompts)
    with inject_cached_features(inner, _features(inner, prompts)):
        chosen, rejected, *rejected_image = _of_row(inner, pack(batch, inner))
    return ResponseStates(
        chosen=chosen,
        rejected=rejected,
        rejected_image=rejected_image[0] if rejected_image else None,
    )


def _features(inner: Any, prompts: Sequence[Prompts]) -> Features | None:
    """Return what the tower says of all images that are asked for at once; None: it is asked."""
    if all(part.features is None for part in prompts):
        return None
    return join_features(
        [
            tower_features(inner, part.images) if part.features is None else part.features
            for part in prompts
        ]
    )


def _of_row(inner: Any, row: PackedRow) -> tuple[Tensor, ...]:
    with counted_on_host(inner, row.host_ids):
        hidden: Tensor = inner(
            input_ids=row.input_ids,
            # Of four dimensions, so that the model makes no mask of its own; nothing looks at it.
            attention_mask=torch.zeros(1, 1, 1, 1, device=row.input_ids.device),
            position_ids=row.positions,
            packing=row.spans,
            use_cache=False,
            **as_held(row.inputs, inner),
        ).last_hidden_state
    return tuple(hidden[0, places] for places in row.predicting)
