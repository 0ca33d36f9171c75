"""Prefill: read prompts, and return the logits of their answers' first tokens.

Shapes: S lanes, Q questions of a lane at most, T tokens, C columns, N rows in all, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.evaluation.inference.kv_cache import cache_argument, growing_cache
from chip_core.evaluation.inference.prompts import Prompt, padded
from chip_core.evaluation.inference.rows import Row, positions_in, positions_of
from chip_core.evaluation.inference.shared import side_by_side, start_of
from chip_core.models.precision import match_dtype


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Lanes after prefill."""

    cache: Any  # keys and values (S, H, C, D) a layer
    seen: Tensor  # (S, Q, C) bool: the columns that each question's answer sees
    positions: Tensor  # (…, S, Q) of the answers' first tokens
    scores: Tensor  # (N, V) logits of the same tokens


def begin(model: Any, groups: Sequence[Sequence[Row]], pad: int) -> Begun:
    """Read prompts.

    Args:
        model: the model.
        groups: rows whose prompts share a picture and all tokens up to its end.
        pad: the padding token.
    """
    prompts = [[row.prompt for row in group] for group in groups]
    if all(len(group) == 1 for group in groups):
        return _each_alone(model, [prompt for (prompt,) in prompts], pad)
    return _behind_a_beginning(model, prompts, pad)


def _each_alone(model: Any, prompts: Sequence[Prompt], pad: int) -> Begun:
    device = next(model.parameters()).device
    batch = padded(prompts, [prompt.ids for prompt in prompts], device, pad=pad)
    positions = positions_in(model, batch)
    cache = growing_cache(model)
    logits = model(
        **match_dtype(batch, model),
        position_ids=positions,
        **cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return Begun(
        cache=cache,
        seen=batch["attention_mask"].bool()[:, None],
        positions=positions[..., -1:] + 1,
        scores=logits[:, -1].float(),
    )


def _behind_a_beginning(model: Any, groups: Sequence[Sequence[Prompt]], pad: int) -> Begun:
    """Read the common beginning of a lane's prompts, and then the rest of each in one pass.

    The rests follow each other, padded on the left, with their last tokens at the end: logits are
    computed for those alone.
    """
    device = next(model.parameters()).device
    starts = [start for group in groups if (start := start_of(group)) is not None]
    firsts = [group[0] for group in groups]
    begins = [prompt.ids[:start] for prompt, start in zip(firsts, starts, strict=True)]
    positions = [positions_of(model, prompt) for prompt in firsts]
    cache = growing_cache(model)
    batch = padded(firsts, begins, device, pad=pad)
    model(
        **match_dtype(batch, model),
        position_ids=side_by_side(
            [own[..., :start] for own, start in zip(positions, starts, strict=True)]
        ),
        **cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=1,
    )
    rests = [
        [prompt.ids[start:] for prompt in group]
        for group, start in zip(groups, starts, strict=True)
    ]
    ids, owner, place = (table.to(device) for table in _laid(rests, pad))
    # Text positions continue from where the prompts of a picture begin to differ.
    from_ = torch.stack(
        [own[..., 0, start] for own, start in zip(positions, starts, strict=True)], dim=-1
    )[..., None]
    before = batch["attention_mask"].bool()
    own = (owner[:, :, None] == owner[:, None, :]) & (place[:, :, None] >= place[:, None, :])
    tokens = ids.shape[1]
    seen = torch.cat([before[:, None].expand(-1, tokens, -1), own], dim=-1)
    dtype = model.get_input_embeddings().weight.dtype  # fp32 within `compute_in_fp32`
    hidden = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(
        ~seen, torch.finfo(dtype).min
    )
    most = max(map(len, groups))
    logits = model(
        input_ids=ids,
        attention_mask=hidden[:, None],
        position_ids=from_ + place,
        **cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=most,
    ).logits[:, -most:]
    numbers = torch.arange(most, device=device)
    lengths = torch.tensor(
        [[*map(len, rest), *[0] * (most - len(rest))] for rest in rests], device=device
    )
    answers = owner[:, None, :] == numbers[:, None]
    return Begun(
        cache=cache,
        seen=torch.cat([before[:, None].expand(-1, most, -1), answers], dim=-1),
        positions=from_ + lengths,
        scores=torch.cat(
            [made[most - len(rest) :] for made, rest in zip(logits, rests, strict=True)]
        ).float(),
    )


def _laid(rests: Sequence[Sequence[Sequence[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each lane's tokens (S, T), the question of each, and its position in the question.

    Args:
        rests: for each lane, the tokens of each question.
        pad: the padding token, which belongs to question -1.
    """
    longest = max(sum(map(len, rest)) for rest in rests)
    rows = []
    for rest in rests:
        told = [
            (token, number, place)
            for number, tokens in enumerate(rest)
            for place, token in enumerate(tokens[:-1])
        ]
        told += [(tokens[-1], number, len(tokens) - 1) for number, tokens in enumerate(rest)]
        rows.append([(pad, -1, 0)] * (longest - len(told)) + told)
    ids, owner, place = torch.tensor(rows).unbind(-1)
    return ids, owner, place
