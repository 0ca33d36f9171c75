"""The one way to the hidden states that predict a batch's responses.

Policy, reference and stored reference passes all take it, so that they round alike.

Shapes: B pairs, D hidden, N tokens of all of a batch's responses of one kind, row after row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.models.adapters import is_adapted
from chip_core.training.layout import lay_out


@dataclass(frozen=True, kw_only=True)
class ResponseStates:
    """The decoder's last hidden states that predict response tokens; no padding.

    Row n is of the n-th true entry of the batch's mask of that response (row-major), so that
    `Responses.ids[Responses.mask]` are the tokens predicted.
    """

    chosen: Tensor  # (N, D)
    rejected: Tensor  # (N, D)
    rejected_image: Tensor | None  # (N, D), the chosen response under the rejected image


def response_states(
    model: Any, batch: PairBatch, *, prefix_sharing: bool, bf16: bool = False
) -> ResponseStates:
    """Compute the hidden states that predict a batch's responses.

    Args:
        model: the policy or a reference, with or without adapters.
        batch: on the model's device.
        prefix_sharing: whether chosen and rejected are computed behind one prompt, in one pass.
        bf16: whether to compute under autocast.
    """
    chosen, rejected = text_states(model, batch, prefix_sharing=prefix_sharing, bf16=bf16)
    return ResponseStates(
        chosen=chosen,
        rejected=rejected,
        rejected_image=rejected_image_states(model, batch, bf16=bf16),
    )


def text_states(
    model: Any, batch: PairBatch, *, prefix_sharing: bool, bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute (chosen, rejected) under the image alone; see `response_states`."""
    with autocast(batch.prompts.ids.device, bf16=bf16):
        if prefix_sharing:
            chosen, rejected = _states(model, batch.prompts, (batch.chosen, batch.rejected))
        else:
            (chosen,) = _states(model, batch.prompts, (batch.chosen,))
            (rejected,) = _states(model, batch.prompts, (batch.rejected,))
    return chosen, rejected


def rejected_image_states(model: Any, batch: PairBatch, *, bf16: bool = False) -> Tensor | None:
    """Compute the chosen response under the rejected image alone; None where there is none."""
    if batch.rejected_image_prompts is None or batch.rejected_image is None:
        return None
    with autocast(batch.prompts.ids.device, bf16=bf16):
        (states,) = _states(model, batch.rejected_image_prompts, (batch.rejected_image,))
    return states


def autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[Any]:
    """Return the precision that passes are computed in."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def _states(model: Any, prompts: Prompts, responses: Sequence[Responses]) -> tuple[Tensor, ...]:
    inner = (model.get_base_model() if is_adapted(model) else model).model
    rows = lay_out(prompts, responses, model=inner)
    restarted = {} if rows.positions is None else {"position_ids": rows.positions}
    hidden: Tensor = inner(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask(next(model.parameters()).dtype),
        use_cache=False,
        **restarted,
        **rows.inputs,
    ).last_hidden_state
    return tuple(hidden[row, place] for row, place in rows.predicting)
