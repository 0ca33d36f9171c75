"""Compute the common beginning of prompts on one picture once.

AMBER asks about 14 questions a picture, POPE 6, and nearly all tokens of a prompt are the
picture's. A batch then is

    [padding | common beginning of a picture's prompts | padding | a question]

where the first half is computed once a picture, and its keys and values are copied to every
question's row.

Shapes: K pictures, B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from chip_core.evaluation.inference.kv_cache import make_cache_argument, make_growing_cache
from chip_core.evaluation.inference.prompts import Prompt, common_length, pad_batch
from chip_core.evaluation.inference.rows import next_logits, prompt_positions
from chip_core.models.precision import match_dtype

#: Largest difference of logits from those of separate rows, as a share of the largest logit. A
#: family that handles a cache wrongly is off by more than a hundredth.
MAX_LOGIT_ERROR = 1e-3

#: What a family raises that cannot be computed in another way than by transformers' `generate`.
UNSUPPORTED_ERRORS = (
    AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """A batch whose first part is computed, as inputs for a model's `generate`."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    position_ids: Tensor  # (B, T), with further leading axes for Qwen-VL
    cache: Any  # of the first part, a row for each of B


def share_prefix_rows(
    model: Any, groups: Sequence[Sequence[Prompt]], *, copies: int = 1, pad: int = 0
) -> SharedRows | None:
    """Compute the common beginning of each group's prompts, once.

    Returns None if the prompts of a group differ before the end of its picture.

    Args:
        model: the model.
        groups: prompts that show the same picture.
        copies: the rows of keys and values for each row: one per beam.
        pad: the padding token.
    """
    group_lengths = [shared_length(prompts) for prompts in groups]
    prefix_lengths = [length for length in group_lengths if length is not None]
    if len(prefix_lengths) < len(group_lengths):
        return None
    positions = [[prompt_positions(model, prompt) for prompt in prompts] for prompts in groups]
    prefix_positions = [
        rows[0][..., :length] for rows, length in zip(positions, prefix_lengths, strict=True)
    ]
    # Beams reorder rows at each token, which copies all keys and values anyway.
    cache = make_growing_cache(model) if copies == 1 else DynamicCache(config=model.config)
    first_prompts = [prompts[0] for prompts in groups]
    prefix_batch = read_prefixes(model, first_prompts, prefix_positions, cache, pad)
    device = next(model.parameters()).device
    group_of = [group for group, prompts in enumerate(groups) for _ in prompts]
    row_groups = torch.tensor(group_of, device=device)
    cache.batch_select_indices(row_groups.repeat_interleave(copies))

    prompts = [prompt for group in groups for prompt in group]
    rests = [
        prompt.ids[prefix_lengths[group] :] for prompt, group in zip(prompts, group_of, strict=True)
    ]
    rest_positions = [
        row[..., prefix_lengths[group] :] for group, rows in enumerate(positions) for row in rows
    ]
    rest_batch = _pad_text(rests, device, pad)
    return SharedRows(
        input_ids=torch.cat(
            [prefix_batch["input_ids"][row_groups], rest_batch["input_ids"]], dim=1
        ),
        attention_mask=torch.cat(
            [prefix_batch["attention_mask"][row_groups], rest_batch["attention_mask"]], dim=1
        ),
        position_ids=torch.cat(
            [
                stack_positions([prefix_positions[group] for group in group_of]),
                stack_positions(rest_positions),
            ],
            dim=-1,
        ),
        cache=cache,
    )


def read_prefixes(
    model: Any, prompts: Sequence[Prompt], positions: Sequence[Tensor], cache: Any, pad: int
) -> dict[str, Tensor]:
    """Read the beginnings of prompts into a cache; return them as a batch.

    Args:
        model: the model.
        prompts: the prompts.
        positions: of the tokens of each beginning, (…, 1, T).
        cache: an empty cache.
        pad: the padding token.
    """
    prefixes = [prompt.ids[: row.shape[-1]] for prompt, row in zip(prompts, positions, strict=True)]
    batch = pad_batch(prompts, prefixes, next(model.parameters()).device, pad=pad)
    model(
        **match_dtype(batch, model),
        position_ids=stack_positions(positions),
        **make_cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=1,
    )
    return batch


def measure_sharing_error(model: Any, groups: Sequence[Sequence[Prompt]]) -> float:
    """Return the error of the first token's logits in sharing rows, as a share of the largest.

    It is infinite if the family cannot share at all.
    """
    groups_tried = [group[:2] for group in groups[:2]]
    exact = torch.stack([next_logits(model, prompt) for group in groups_tried for prompt in group])
    try:
        rows = share_prefix_rows(model, groups_tried)
        if rows is None:
            return 0.0  # nothing is shared
        prefix_length = rows.cache.get_seq_length()
        logits = model(
            input_ids=rows.input_ids[:, prefix_length:],
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids[..., prefix_length:],
            **make_cache_argument(model, rows.cache),
            use_cache=True,
        ).logits[:, -1]
    except UNSUPPORTED_ERRORS:
        return math.inf
    return relative_error(logits.float(), exact)


def relative_error(logits: Tensor, exact: Tensor) -> float:
    """Return the largest error of logits as a share of the largest one; infinite if not finite."""
    error = (logits - exact).abs().amax() / exact.abs().amax()
    return float(error) if error.isfinite() else math.inf


def shared_length(prompts: Sequence[Prompt]) -> int | None:
    """Return how many tokens a group's prompts share; None if they differ in their picture."""
    rows = [prompt.ids for prompt in prompts]
    length = min(*(common_length(rows[0], row) for row in rows), min(map(len, rows)) - 1)
    return None if length < prompts[0].vision_end else length


def stack_positions(rows: Sequence[Tensor]) -> Tensor:
    """Return position rows (…, 1, T) as one batch (…, B, T), padded on the left with 0."""
    longest = max(row.shape[-1] for row in rows)
    padded_rows = [torch.nn.functional.pad(row, (longest - row.shape[-1], 0)) for row in rows]
    return torch.cat(padded_rows, dim=-2)


def _pad_text(rows: Sequence[Sequence[int]], device: torch.device, pad: int) -> dict[str, Tensor]:
    prompt = Prompt(ids=[], pictures={}, token_types={}, vision_end=0)
    return pad_batch([prompt] * len(rows), rows, device, pad=pad)
