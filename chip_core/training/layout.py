"""How prompts and responses lie in the rows that a decoder reads.

Padded: `[prompt][response]` is a row of its own. Packed: all of a batch lies in one row without
padding, all responses under an image behind one prompt, and the image with it; each response's
positions go on where its prompt ends.

Shapes: B pairs, T tokens of a row, P of a prompt, C of a response, N tokens of all responses.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import PairBatch, Prompts, Responses, is_by_token, sent, stack_inputs
from chip_core.models.packing import Span
from chip_core.objectives.parts import VIEWS, Behind, Image, Response

_IMAGES: tuple[Image, ...] = ("image", "rejected_image", "second_image")
_RESPONSES: tuple[Response, ...] = ("chosen", "rejected", "other")


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """One response a row."""

    input_ids: Tensor  # (B, T), padded on the right
    host_ids: Tensor  # the same on the host
    attention_mask: Tensor  # (B, T), 1 on tokens
    inputs: dict[str, Tensor]  # pixel values and their like
    predicting: tuple[Tensor, Tensor]  # (rows, places), (N,) each: what predicts the response


@dataclass(frozen=True, kw_only=True)
class PackedRow:
    """A whole batch in one row."""

    input_ids: Tensor  # (1, T)
    host_ids: Tensor  # the same on the host
    positions: Tensor  # (1, T), or (3, 1, T) for Qwen-VL
    inputs: dict[str, Tensor]  # pixel values and their like
    spans: tuple[Span, ...]
    predicting: tuple[Tensor, ...]  # (N,) places of what predicts each response; see `pack`


def pad(prompts: Prompts, responses: Responses) -> PaddedRows:
    """Return each prompt with its response behind it."""
    device, inputs = prompts.ids.device, prompts.inputs
    # Looked at on the host: a device would be waited for.
    prompts, responses = prompts.on_host, responses.on_host
    behind = responses.behind
    ids = torch.cat([prompts.ids, behind.ids], 1)
    mask = torch.cat([prompts.mask, behind.mask], 1)
    # Tokens move to the left over the padding between the two; they keep their order.
    length = int(mask.sum(1).max())
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :length]
    rows, columns = responses.places
    first = prompts.mask.sum(1, keepdim=True) - 1  # the prompt's last token predicts the first
    more = behind.ids.shape[1]
    predicting = first + torch.arange(more, device=ids.device)
    if responses.leading is not None:
        predicting = torch.cat([_before(responses.leading), predicting], 1)
    ids = ids.gather(1, order)
    return PaddedRows(
        input_ids=sent(ids, device),
        host_ids=ids,
        attention_mask=sent(mask.gather(1, order).long(), device),
        inputs={
            name: sent(torch.nn.functional.pad(value, (0, more)).gather(1, order), device)
            if is_by_token(name)
            else inputs[name]
            for name, value in prompts.inputs.items()
        },
        predicting=(sent(rows, device), sent(predicting[rows, columns], device)),
    )


#: The views in the order in which they lie in a packed row.
_LYING = sorted(
    VIEWS, key=lambda view: (_IMAGES.index(VIEWS[view][0]), _RESPONSES.index(VIEWS[view][1]))
)


def lying(views: Collection[str]) -> list[str]:
    """Return views in the order in which they lie in a packed row."""
    return [view for view in _LYING if view in views]


def pack(batch: PairBatch, model: Any, views: Collection[str] | None = None) -> PackedRow:
    """Return a batch as one row: each pair's prompt and the responses under its image; then, where
    there are rejected images, each pair's prompt with that and its responses; then second images.
    A rejected response with an image of its own lies behind a prompt of its own.

    Args:
        batch: the batch.
        model: says how positions are counted, if it has its own way (`get_rope_index` of Qwen-VL).
        views: those that are wanted; None: all that the batch has.

    Returns:
        the row; `predicting` is of the views in the order of `lying`.
    """
    responses = batch.responses
    wanted = lying(responses if views is None else views)
    together: dict[Behind, list[str]] = {}
    for view in wanted:
        together.setdefault(batch.behind(view), []).append(view)
    parts = [
        pack_prompts(batch.prompts_of(*behind), [responses[view] for view in under], model)
        for behind, under in together.items()
    ]
    if len(parts) == 1:
        return parts[0]
    lengths = [part.input_ids.shape[1] for part in parts]
    starts = [sum(lengths[:number]) for number in range(len(parts))]
    by_token = {name for name in parts[0].inputs if is_by_token(name)}
    inputs = stack_inputs(
        [{k: v for k, v in part.inputs.items() if k not in by_token} for part in parts], tokens=0
    )
    inputs |= {name: torch.cat([part.inputs[name] for part in parts], 1) for name in by_token}
    predicting = {
        view: place + start
        for part, start, under in zip(parts, starts, together.values(), strict=True)
        for view, place in zip(under, part.predicting, strict=True)
    }
    return PackedRow(
        input_ids=torch.cat([part.input_ids for part in parts], 1),
        host_ids=torch.cat([part.host_ids for part in parts], 1),
        positions=torch.cat([part.positions for part in parts], -1),
        inputs=inputs,
        spans=tuple(span for part in parts for span in part.spans),
        predicting=tuple(predicting[view] for view in wanted),
    )


def pack_prompts(prompts: Prompts, responses: Sequence[Responses], model: Any) -> PackedRow:
    """Return prompts as one row, each with a response of each kind behind it; see `pack`."""
    device, inputs = prompts.ids.device, prompts.inputs
    # Looked at on the host: a device would be waited for.
    prompts, responses = prompts.on_host, [part.on_host for part in responses]
    behind = [part.behind for part in responses]
    masks = [prompts.mask, *(part.mask for part in behind)]
    mask = torch.cat(masks, 1)
    ids = torch.cat([prompts.ids, *(part.ids for part in behind)], 1)
    positions = _positions(prompts, behind, model)
    places = (mask.flatten().cumsum(0) - 1).view(mask.shape)  # where a token comes to lie
    last = places.gather(1, prompts.mask.sum(1, keepdim=True) - 1)  # of each prompt, (B, 1)
    predicting, start = [], prompts.ids.shape[1]
    for part, own in zip(responses, behind, strict=True):
        lying = places[:, start : start + own.ids.shape[1]]
        before = [last, lying[:, :-1]]
        if part.leading is not None:
            before.insert(0, places.gather(1, _before(part.leading)))
        predicting.append(sent(torch.cat(before, 1)[part.mask], device))
        start += own.ids.shape[1]
    lengths = torch.stack([part.sum(1) for part in masks], 1).tolist()
    more = (0, ids.shape[1] - prompts.ids.shape[1])
    return PackedRow(
        input_ids=sent(ids[mask][None], device),
        host_ids=ids[mask][None],
        positions=sent(positions[..., mask].unsqueeze(-2), device),
        inputs={
            name: sent(torch.nn.functional.pad(value, more)[mask][None], device)
            if is_by_token(name)
            else inputs[name]
            for name, value in prompts.inputs.items()
        },
        spans=tuple(Span(prompt=row[0], responses=tuple(row[1:])) for row in lengths),
        predicting=tuple(predicting),
    )


def _before(leading: Tensor) -> Tensor:
    """Return the places in a prompt that predict others; where there is none, any."""
    return (leading - 1).clamp(min=0)


def _positions(prompts: Prompts, responses: Sequence[Responses], model: Any) -> Tensor:
    """Return the position of every column: responses go on behind their prompt's last."""
    index = getattr(model, "get_rope_index", None)
    if index is None:
        of_prompt = torch.arange(prompts.ids.shape[1], device=prompts.ids.device)
        of_prompt = of_prompt.expand_as(prompts.ids)
        following = prompts.mask.sum(1, keepdim=True)
    else:
        known = {
            name: value
            for name, value in prompts.inputs.items()
            if "grid" in name or is_by_token(name)
        }
        of_prompt, _ = index(prompts.ids, attention_mask=prompts.mask.long(), **known)
        largest = of_prompt.masked_fill(~prompts.mask, 0).amax((0, 2))
        following = (largest + 1)[:, None].expand(len(of_prompt), -1, -1)
    counted = [of_prompt]
    for part in responses:
        counted.append(following + torch.arange(part.ids.shape[1], device=part.ids.device))
    return torch.cat(counted, -1)
