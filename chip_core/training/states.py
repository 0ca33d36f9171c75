"""The one way to the hidden states that predict a batch's responses.

Policy, reference and stored reference passes all take it, so that they round alike. No pass asks
the device how many image tokens a row has: transformers holds their number against that of image
features, has the device count them, and waits. The number is known where the row was made.

Shapes: B pairs, D hidden, N tokens of all of a batch's responses of one kind, row after row.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import PairBatch, Prompts, Responses, sent
from chip_core.models.packing import Packing, is_fused
from chip_core.models.parts import without_head
from chip_core.models.precision import as_held
from chip_core.models.tower import Features, inject_cached_features, join_features, tower_features
from chip_core.objectives.parts import VIEWS
from chip_core.training.layout import PackedRow, lying, pack, pad


@dataclass(frozen=True, kw_only=True)
class ResponseStates:
    """The decoder's last hidden states that predict response tokens; no padding.

    Row n is of the n-th true entry of the batch's mask of that response (row-major), so that
    `Responses.ids[Responses.mask]` are the tokens predicted.
    """

    views: Mapping[str, Tensor]  # (N, D) each, in the order of `VIEWS`

    @property
    def chosen(self) -> Tensor:
        """Of the chosen response."""
        return self.views["chosen"]

    @property
    def rejected(self) -> Tensor:
        """Of the rejected response."""
        return self.views["rejected"]

    @property
    def rejected_image(self) -> Tensor | None:
        """Of the chosen response under the rejected image."""
        return self.views.get("rejected_image")


def response_states(
    model: Any,
    batch: PairBatch,
    *,
    prefix_sharing: bool,
    views: Collection[str] | None = None,
) -> ResponseStates:
    """Compute the hidden states that predict a batch's responses.

    Args:
        model: the policy or a reference, with or without adapters.
        batch: on the model's device.
        prefix_sharing: whether all is computed in one packed row, the responses under an image
            behind one prompt; the model must be within `packed_attention`. Else one pass a
            response.
        views: those that are computed; None: all that the batch has.
    """
    inner = without_head(model)
    responses = batch.responses
    wanted = lying(responses if views is None else views)
    if prefix_sharing:
        found = _packed(inner, batch, wanted)
    else:
        found = {
            view: _padded(inner, batch.prompts_of(*batch.behind(view)), responses[view])
            # First what was always first: the order of passes is the order of sums.
            for view in sorted(wanted, key=lambda view: view != "rejected_image")
        }
    return ResponseStates(views={view: found[view] for view in VIEWS if view in found})


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


def _packed(inner: Any, batch: PairBatch, views: Sequence[str]) -> dict[str, Tensor]:
    behind = dict.fromkeys(batch.behind(view) for view in views)  # in the order of the row
    prompts = [batch.prompts_of(*which) for which in behind]
    with inject_cached_features(inner, _features(inner, prompts)):
        return dict(zip(views, _of_row(inner, pack(batch, inner, views)), strict=True))


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
    packing, device = Packing(row.spans), row.input_ids.device
    if is_fused(inner):
        packing.lay_out(lambda value: sent(value, device))
    with counted_on_host(inner, row.host_ids):
        hidden: Tensor = inner(
            input_ids=row.input_ids,
            # Of four dimensions, so that the model makes no mask of its own; nothing looks at it.
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            position_ids=row.positions,
            packing=packing,
            use_cache=False,
            **as_held(row.inputs, inner),
        ).last_hidden_state
    return tuple(hidden[0, places] for places in row.predicting)


#: What LLaVA's way to find them takes; families with another one keep theirs.
_TAKEN = ["input_ids", "inputs_embeds", "image_features"]


@contextmanager
def counted_on_host(inner: Any, ids: Tensor) -> Iterator[None]:
    """Let a model find its image tokens by their number on the host, which is checked as well.

    Args:
        inner: the part of a model that merges images and text.
        ids: of the row that it is given, on the host.
    """
    own = getattr(inner, "get_placeholder_mask", None)
    if own is None or list(inspect.signature(own).parameters) != _TAKEN:
        yield
        return
    token = inner.config.image_token_id
    tokens = int((ids == token).sum())

    def mask(input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor) -> Tensor:
        if tokens * inputs_embeds.shape[-1] != image_features.numel():
            raise ValueError(
                f"the row has {tokens} image tokens, and its images "
                f"{image_features.numel() / inputs_embeds.shape[-1]:g} features"
            )
        return input_ids.eq(token).unsqueeze(-1)

    inner.get_placeholder_mask = mask  # on the instance, over the class's own
    try:
        yield
    finally:
        del inner.get_placeholder_mask
