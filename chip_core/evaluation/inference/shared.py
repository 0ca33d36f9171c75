"""Compute the common beginning of prompts on one picture once.

AMBER asks about 14 questions a picture, POPE 6, and nearly all tokens of a prompt are the
picture's. A batch then is

    [padding | common beginning of a picture's prompts | padding | a question]

where the first half is computed once a picture, and its keys and values are copied to every
question's row.

Shapes: K pictures, B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from chip_core.evaluation.inference.kv_cache import cache_argument, growing_cache
from chip_core.evaluation.inference.prompts import Prompt, common_start, padded
from chip_core.evaluation.inference.rows import next_logits, positions_of
from chip_core.models.precision import match_dtype

#: Largest difference of logits from those of separate rows, as a share of the largest logit. A
#: family that handles a cache wrongly is off by more than a hundredth.
EXACT = 1e-3


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """A batch whose first part is computed, as inputs for a model's `generate`."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    position_ids: Tensor  # (B, T), with further leading axes for Qwen-VL
    cache: Any  # of the first part, a row for each of B


def share(
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
    found = [start_of(prompts) for prompts in groups]
    starts = [start for start in found if start is not None]
    if len(starts) < len(found):
        return None
    device = next(model.parameters()).device
    firsts = [prompts[0] for prompts in groups]
    begins = [prompt.ids[:start] for prompt, start in zip(firsts, starts, strict=True)]
    positions = [[positions_of(model, prompt) for prompt in prompts] for prompts in groups]
    begin_positions = [own[0][..., :start] for own, start in zip(positions, starts, strict=True)]
    # Beams reorder rows at each token, which copies all keys and values anyway.
    cache = growing_cache(model) if copies == 1 else DynamicCache(config=model.config)
    model(
        **match_dtype(padded(firsts, begins, device, pad=pad), model),
        position_ids=side_by_side(begin_positions),
        **cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=1,
    )
    owner = [group for group, prompts in enumerate(groups) for _ in prompts]
    rows_of = torch.tensor(owner, device=device)
    cache.batch_select_indices(rows_of.repeat_interleave(copies))

    prompts = [prompt for group in groups for prompt in group]
    rests = [prompt.ids[starts[group] :] for prompt, group in zip(prompts, owner, strict=True)]
    rest_positions = [
        own[..., starts[group] :] for group, rows in enumerate(positions) for own in rows
    ]
    left = padded(firsts, begins, device, pad=pad)
    right = _text(rests, device, pad)
    return SharedRows(
        input_ids=torch.cat([left["input_ids"][rows_of], right["input_ids"]], dim=1),
        attention_mask=torch.cat([left["attention_mask"][rows_of], right["attention_mask"]], dim=1),
        position_ids=torch.cat(
            [
                side_by_side([begin_positions[group] for group in owner]),
                side_by_side(rest_positions),
            ],
            dim=-1,
        ),
        cache=cache,
    )


def sharing_inexactness(model: Any, groups: Sequence[Sequence[Prompt]]) -> float:
    """Return the error of the first token's logits in sharing rows, as a share of the largest.

    It is infinite if the family cannot share at all.
    """
    few = [group[:2] for group in groups[:2]]
    alone = torch.stack([next_logits(model, prompt) for group in few for prompt in group])
    try:
        rows = share(model, few)
        if rows is None:
            return 0.0  # nothing is shared
        done = rows.cache.get_seq_length()
        logits = model(
            input_ids=rows.input_ids[:, done:],
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids[..., done:],
            **cache_argument(model, rows.cache),
            use_cache=True,
        ).logits[:, -1]
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return float("inf")
    off = (logits.float() - alone).abs().max() / alone.abs().max()
    return float(off) if off.isfinite() else float("inf")


def start_of(prompts: Sequence[Prompt]) -> int | None:
    """Return how many tokens a group's prompts share; None if they differ in their picture."""
    rows = [prompt.ids for prompt in prompts]
    start = min(common_start(rows), min(map(len, rows)) - 1)
    return None if start < prompts[0].vision_end else start


def side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Return position rows (…, 1, T) as one batch (…, B, T), padded on the left with 0."""
    longest = max(row.shape[-1] for row in rows)
    grown = [torch.nn.functional.pad(row, (longest - row.shape[-1], 0)) for row in rows]
    return torch.cat(grown, dim=-2)


def _text(rows: Sequence[Sequence[int]], device: torch.device, pad: int) -> dict[str, Tensor]:
    words = Prompt(ids=[], pictures={}, kinds={}, vision_end=0)
    return padded([words] * len(rows), rows, device, pad=pad)
