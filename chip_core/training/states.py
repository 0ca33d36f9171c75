"""The hidden states that predict a batch's responses, computed from token rows.

Policy, reference and stored reference passes all use this code, so that they round in the same way.
No pass reads the number of a row's image tokens from the device: transformers compares it with the
number of image features, which makes the device count and the host wait. The host that built the
row knows the number.

Padded: each `[prompt][response]` is a row. Packed: a whole batch is one row without padding, in
which all responses under an image follow one prompt, with that image; the positions of each
response continue from the end of its prompt.

Shapes: B pairs, D hidden, T tokens of a row, P of a prompt, C of a response, N tokens of all of a
batch's responses of one kind, row after row.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import (
    PairBatch,
    Prompts,
    Responses,
    is_per_token,
    stack_inputs,
    to_device,
)
from chip_core.models.packing import Packing, Span, is_fused
from chip_core.models.parts import (
    Features,
    compute_tower_features,
    get_base_decoder,
    inject_cached_features,
    join_features,
)
from chip_core.models.precision import match_dtype
from chip_core.objectives.parts import VIEWS, Image, Prefix, Response

_IMAGES: tuple[Image, ...] = ("image", "rejected_image", "second_image")
_RESPONSES: tuple[Response, ...] = ("chosen", "rejected", "other")


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """One response per row."""

    input_ids: Tensor  # (B, T), padded on the right
    host_ids: Tensor  # the same on the host
    attention_mask: Tensor  # (B, T), 1 on tokens
    inputs: dict[str, Tensor]  # pixel values and other inputs of the processor
    predicting: tuple[Tensor, Tensor]  # (rows, positions), (N,) each, that predict the response


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """A whole batch in one row."""

    input_ids: Tensor  # (1, T)
    host_ids: Tensor  # the same on the host
    positions: Tensor  # (1, T), or (3, 1, T) for Qwen-VL
    inputs: dict[str, Tensor]  # pixel values and other inputs of the processor
    spans: tuple[Span, ...]
    predicting: tuple[Tensor, ...]  # (N,) positions that predict each response; see `pack`


def pad(prompts: Prompts, responses: Responses) -> PaddedRows:
    """Return each prompt followed by its response, one row each."""
    device, inputs = prompts.ids.device, prompts.inputs
    # Computed on the host, to avoid waiting for the device.
    prompts, responses = prompts.on_host, responses.on_host
    trailing = responses.without_leading
    ids = torch.cat([prompts.ids, trailing.ids], 1)
    mask = torch.cat([prompts.mask, trailing.mask], 1)
    # Tokens move left over the padding between prompt and response, in the same order.
    length = int(mask.sum(1).max())
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :length]
    rows, columns = responses.token_indices
    # The prompt's last token predicts the first of the response.
    last_prompt_position = prompts.mask.sum(1, keepdim=True) - 1
    response_length = trailing.ids.shape[1]
    predicting = last_prompt_position + torch.arange(response_length, device=ids.device)
    if responses.leading is not None:
        predicting = torch.cat([_predecessors(responses.leading), predicting], 1)
    ids = ids.gather(1, order)
    return PaddedRows(
        input_ids=to_device(ids, device),
        host_ids=ids,
        attention_mask=to_device(mask.gather(1, order).long(), device),
        inputs={
            name: to_device(
                torch.nn.functional.pad(value, (0, response_length)).gather(1, order), device
            )
            if is_per_token(name)
            else inputs[name]
            for name, value in prompts.inputs.items()
        },
        predicting=(to_device(rows, device), to_device(predicting[rows, columns], device)),
    )


#: The views in their order in a packed row.
_ROW_ORDER = sorted(
    VIEWS, key=lambda view: (_IMAGES.index(VIEWS[view][0]), _RESPONSES.index(VIEWS[view][1]))
)


def sort_views(views: Collection[str]) -> list[str]:
    """Return views in their order in a packed row."""
    return [view for view in _ROW_ORDER if view in views]


def pack(batch: PairBatch, model: Any, views: Collection[str] | None = None) -> PackedRow:
    """Pack a batch into one row: each pair's prompt and the responses under its image; then, if
    there are rejected images, each pair's prompt with that and its responses; then second images.
    A rejected response with an image of its own follows a prompt of its own.

    Args:
        batch: the batch.
        model: counts positions, if it has its own method (`get_rope_index` of Qwen-VL).
        views: those that are wanted; None: all that the batch has.

    Returns:
        the row; `predicting` has the views in the order of `sort_views`.
    """
    responses = batch.responses
    row_views = sort_views(responses if views is None else views)
    views_by_prefix: dict[Prefix, list[str]] = {}
    for view in row_views:
        views_by_prefix.setdefault(batch.prefix(view), []).append(view)
    parts = [
        pack_prompts(
            batch.select_prompts(*prefix), [responses[view] for view in prefix_views], model
        )
        for prefix, prefix_views in views_by_prefix.items()
    ]
    if len(parts) == 1:
        return parts[0]
    lengths = [part.input_ids.shape[1] for part in parts]
    starts = [sum(lengths[:index]) for index in range(len(parts))]
    token_inputs = {name for name in parts[0].inputs if is_per_token(name)}
    inputs = stack_inputs(
        [{k: v for k, v in part.inputs.items() if k not in token_inputs} for part in parts],
        tokens=0,
    )
    inputs |= {name: torch.cat([part.inputs[name] for part in parts], 1) for name in token_inputs}
    predicting = {
        view: positions + start
        for part, start, prefix_views in zip(parts, starts, views_by_prefix.values(), strict=True)
        for view, positions in zip(prefix_views, part.predicting, strict=True)
    }
    return PackedRow(
        input_ids=torch.cat([part.input_ids for part in parts], 1),
        host_ids=torch.cat([part.host_ids for part in parts], 1),
        positions=torch.cat([part.positions for part in parts], -1),
        inputs=inputs,
        spans=tuple(span for part in parts for span in part.spans),
        predicting=tuple(predicting[view] for view in row_views),
    )


def pack_prompts(prompts: Prompts, responses: Sequence[Responses], model: Any) -> PackedRow:
    """Return prompts as one row, each followed by a response of each kind; see `pack`."""
    device, inputs = prompts.ids.device, prompts.inputs
    # Computed on the host, to avoid waiting for the device.
    prompts, responses = prompts.on_host, [part.on_host for part in responses]
    trailing = [part.without_leading for part in responses]
    masks = [prompts.mask, *(part.mask for part in trailing)]
    mask = torch.cat(masks, 1)
    ids = torch.cat([prompts.ids, *(part.ids for part in trailing)], 1)
    positions = _positions(prompts, trailing, model)
    # each token's position in the row
    row_positions = (mask.flatten().cumsum(0) - 1).view(mask.shape)
    last = row_positions.gather(1, prompts.mask.sum(1, keepdim=True) - 1)  # of each prompt, (B, 1)
    predicting, start = [], prompts.ids.shape[1]
    for part, response in zip(responses, trailing, strict=True):
        response_positions = row_positions[:, start : start + response.ids.shape[1]]
        predictors = [last, response_positions[:, :-1]]
        if part.leading is not None:
            predictors.insert(0, row_positions.gather(1, _predecessors(part.leading)))
        predicting.append(to_device(torch.cat(predictors, 1)[part.mask], device))
        start += response.ids.shape[1]
    lengths = torch.stack([part.sum(1) for part in masks], 1).tolist()
    padding = (0, ids.shape[1] - prompts.ids.shape[1])
    return PackedRow(
        input_ids=to_device(ids[mask][None], device),
        host_ids=ids[mask][None],
        positions=to_device(positions[..., mask].unsqueeze(-2), device),
        inputs={
            name: to_device(torch.nn.functional.pad(value, padding)[mask][None], device)
            if is_per_token(name)
            else inputs[name]
            for name, value in prompts.inputs.items()
        },
        spans=tuple(Span(prompt=row[0], responses=tuple(row[1:])) for row in lengths),
        predicting=tuple(predicting),
    )


def _predecessors(leading: Tensor) -> Tensor:
    """Return the positions in a prompt that predict other tokens; any position if there is none."""
    return (leading - 1).clamp(min=0)


def _positions(prompts: Prompts, responses: Sequence[Responses], model: Any) -> Tensor:
    """Return the position of every column: responses continue from their prompt's last."""
    rope_index = getattr(model, "get_rope_index", None)
    if rope_index is None:
        prompt_positions = torch.arange(prompts.ids.shape[1], device=prompts.ids.device)
        prompt_positions = prompt_positions.expand_as(prompts.ids)
        next_position = prompts.mask.sum(1, keepdim=True)
    else:
        rope_inputs = {
            name: value
            for name, value in prompts.inputs.items()
            if "grid" in name or is_per_token(name)
        }
        prompt_positions, _ = rope_index(
            prompts.ids, attention_mask=prompts.mask.long(), **rope_inputs
        )
        largest = prompt_positions.masked_fill(~prompts.mask, 0).amax((0, 2))
        next_position = (largest + 1)[:, None].expand(len(prompt_positions), -1, -1)
    positions = [prompt_positions]
    for part in responses:
        positions.append(next_position + torch.arange(part.ids.shape[1], device=part.ids.device))
    return torch.cat(positions, -1)


@dataclass(frozen=True, kw_only=True)
class ResponseStates:
    """The decoder's last hidden states that predict response tokens; no padding.

    Row n belongs to the n-th true entry of the batch's mask of that response (row-major), so that
    `Responses.ids[Responses.mask]` are the predicted tokens.
    """

    views: Mapping[str, Tensor]  # (N, D) each, in the order of `VIEWS`

    @property
    def chosen(self) -> Tensor:
        """The states of the chosen response."""
        return self.views["chosen"]

    @property
    def rejected(self) -> Tensor:
        """The states of the rejected response."""
        return self.views["rejected"]

    @property
    def rejected_image(self) -> Tensor | None:
        """The states of the chosen response under the rejected image."""
        return self.views.get("rejected_image")


def compute_response_states(
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
        prefix_sharing: whether one packed row is computed, in which the responses under an image
            follow one prompt; the model must be within `use_packed_attention`. Else each response
            has its own pass.
        views: those that are computed; None: all that the batch has.
    """
    base = get_base_decoder(model)
    responses = batch.responses
    row_views = sort_views(responses if views is None else views)
    if prefix_sharing:
        states = _packed_states(base, batch, row_views)
    else:
        states = {
            view: _padded_states(base, batch.select_prompts(*batch.prefix(view)), responses[view])
            # The rejected image comes first, as always: the order of passes is the order of sums.
            for view in sorted(row_views, key=lambda view: view != "rejected_image")
        }
    return ResponseStates(views={view: states[view] for view in VIEWS if view in states})


def _padded_states(base: Any, prompts: Prompts, responses: Responses) -> Tensor:
    rows = pad(prompts, responses)
    with (
        inject_cached_features(base, prompts.features),
        count_images_on_host(base, rows.host_ids),
    ):
        hidden: Tensor = base(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
            **match_dtype(rows.inputs, base),
        ).last_hidden_state
    return hidden[rows.predicting]


def _packed_states(base: Any, batch: PairBatch, views: Sequence[str]) -> dict[str, Tensor]:
    prefixes = dict.fromkeys(batch.prefix(view) for view in views)  # in the order of the row
    prompts = [batch.select_prompts(*prefix) for prefix in prefixes]
    with inject_cached_features(base, _join_features(base, prompts)):
        return dict(zip(views, _row_states(base, pack(batch, base, views)), strict=True))


def _join_features(base: Any, prompts: Sequence[Prompts]) -> Features | None:
    """Return the tower's features of all images, if some are cached; None: none are."""
    if all(part.features is None for part in prompts):
        return None
    return join_features(
        [
            compute_tower_features(base, part.images) if part.features is None else part.features
            for part in prompts
        ]
    )


def _row_states(base: Any, row: PackedRow) -> tuple[Tensor, ...]:
    packing, device = Packing(row.spans), row.input_ids.device
    if is_fused(base):
        packing.prepare_fused(lambda value: to_device(value, device))
    with count_images_on_host(base, row.host_ids):
        hidden: Tensor = base(
            input_ids=row.input_ids,
            # Four dimensions keep the model from making its own mask; the values are not used.
            attention_mask=torch.zeros(1, 1, 1, 1, device=device),
            position_ids=row.positions,
            packing=packing,
            use_cache=False,
            **match_dtype(row.inputs, base),
        ).last_hidden_state
    return tuple(hidden[0, positions] for positions in row.predicting)


#: The parameters of LLaVA's method for this; families with other parameters keep their own method.
_MASK_PARAMETERS = ["input_ids", "inputs_embeds", "image_features"]


@contextmanager
def count_images_on_host(base: Any, ids: Tensor) -> Iterator[None]:
    """Make a model find its image tokens by their number on the host, and check that number.

    Args:
        base: the part of a model that merges images and text.
        ids: the ids of the model's input row, on the host.
    """
    method = getattr(base, "get_placeholder_mask", None)
    if method is None or list(inspect.signature(method).parameters) != _MASK_PARAMETERS:
        yield
        return
    token = base.config.image_token_id
    token_count = int((ids == token).sum())

    def placeholder_mask(
        input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor
    ) -> Tensor:
        if token_count * inputs_embeds.shape[-1] != image_features.numel():
            raise ValueError(
                f"the row has {token_count} image tokens, but its images have "
                f"{image_features.numel() / inputs_embeds.shape[-1]:g} features"
            )
        return input_ids.eq(token).unsqueeze(-1)

    base.get_placeholder_mask = placeholder_mask  # on the instance, hiding the class's method
    try:
        yield
    finally:
        del base.get_placeholder_mask
