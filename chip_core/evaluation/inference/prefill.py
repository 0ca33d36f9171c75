"""Prefill: read prompts, and return the logits of their answers' first tokens.

Shapes: S lanes, Q questions of a lane at most, T tokens, C columns, N rows in all, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.evaluation.inference.kv_cache import make_cache_argument, make_growing_cache
from chip_core.evaluation.inference.prompts import Prompt, pad_batch
from chip_core.evaluation.inference.rows import Row, batch_positions, prompt_positions
from chip_core.evaluation.inference.shared import read_prefixes, shared_length
from chip_core.models.precision import match_dtype


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Lanes after prefill."""

    cache: Any  # keys and values (S, H, C, D) a layer
    visible: Tensor  # (S, Q, C) bool: the columns that each question's answer sees
    positions: Tensor  # (…, S, Q) of the answers' first tokens
    logits: Tensor  # (N, V) logits of the same tokens


def prefill(model: Any, groups: Sequence[Sequence[Row]], pad: int) -> Prefilled:
    """Read prompts.

    Args:
        model: the model.
        groups: rows whose prompts share a picture and all tokens up to its end.
        pad: the padding token.
    """
    prompts = [[row.prompt for row in group] for group in groups]
    if all(len(group) == 1 for group in groups):
        return _prefill_separate(model, [prompt for (prompt,) in prompts], pad)
    return _prefill_shared(model, prompts, pad)


def _prefill_separate(model: Any, prompts: Sequence[Prompt], pad: int) -> Prefilled:
    device = next(model.parameters()).device
    batch = pad_batch(prompts, [prompt.ids for prompt in prompts], device, pad=pad)
    position_ids = batch_positions(model, batch)
    cache = make_growing_cache(model)
    logits = model(
        **match_dtype(batch, model),
        position_ids=position_ids,
        **make_cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return Prefilled(
        cache=cache,
        visible=batch["attention_mask"].bool()[:, None],
        positions=position_ids[..., -1:] + 1,
        logits=logits[:, -1].float(),
    )


def _prefill_shared(model: Any, groups: Sequence[Sequence[Prompt]], pad: int) -> Prefilled:
    """Read the common beginning of a lane's prompts, and then the rest of each in one pass.

    The rests follow each other, padded on the left, with their last tokens at the end: logits are
    computed for those alone.
    """
    device = next(model.parameters()).device
    lengths = [length for group in groups if (length := shared_length(group)) is not None]
    first_prompts = [group[0] for group in groups]
    positions = [prompt_positions(model, prompt) for prompt in first_prompts]
    prefix_positions = [row[..., :length] for row, length in zip(positions, lengths, strict=True)]
    cache = make_growing_cache(model)
    batch = read_prefixes(model, first_prompts, prefix_positions, cache, pad)
    rests = [
        [prompt.ids[length:] for prompt in group]
        for group, length in zip(groups, lengths, strict=True)
    ]
    ids, question_of, position_in_question = (
        table.to(device) for table in _lay_out_questions(rests, pad)
    )
    # Text positions continue from where the prompts of a picture begin to differ.
    first_positions = torch.stack(
        [row[..., 0, length] for row, length in zip(positions, lengths, strict=True)],
        dim=-1,
    )[..., None]
    prefix_mask = batch["attention_mask"].bool()
    own_tokens = (question_of[:, :, None] == question_of[:, None, :]) & (
        position_in_question[:, :, None] >= position_in_question[:, None, :]
    )
    tokens = ids.shape[1]
    prompt_mask = torch.cat([prefix_mask[:, None].expand(-1, tokens, -1), own_tokens], dim=-1)
    dtype = model.get_input_embeddings().weight.dtype  # fp32 within `compute_in_fp32`
    additive_mask = torch.zeros(prompt_mask.shape, dtype=dtype, device=device).masked_fill_(
        ~prompt_mask, torch.finfo(dtype).min
    )
    max_questions = max(map(len, groups))
    logits = model(
        input_ids=ids,
        attention_mask=additive_mask[:, None],
        position_ids=first_positions + position_in_question,
        **make_cache_argument(model, cache),
        use_cache=True,
        logits_to_keep=max_questions,
    ).logits[:, -max_questions:]
    numbers = torch.arange(max_questions, device=device)
    rest_lengths = torch.tensor(
        [[*map(len, rest), *[0] * (max_questions - len(rest))] for rest in rests], device=device
    )
    answer_mask = question_of[:, None, :] == numbers[:, None]
    return Prefilled(
        cache=cache,
        visible=torch.cat(
            [prefix_mask[:, None].expand(-1, max_questions, -1), answer_mask], dim=-1
        ),
        positions=first_positions + rest_lengths,
        logits=torch.cat(
            [
                lane_logits[max_questions - len(rest) :]
                for lane_logits, rest in zip(logits, rests, strict=True)
            ]
        ).float(),
    )


def _lay_out_questions(
    rests: Sequence[Sequence[Sequence[int]]], pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each lane's tokens (S, T), the question of each, and its position in the question.

    Args:
        rests: for each lane, the tokens of each question.
        pad: the padding token, which belongs to question -1.
    """
    max_tokens = max(sum(map(len, rest)) for rest in rests)
    rows = []
    for rest in rests:
        entries = [
            (token, number, position)
            for number, tokens in enumerate(rest)
            for position, token in enumerate(tokens[:-1])
        ]
        entries += [(tokens[-1], number, len(tokens) - 1) for number, tokens in enumerate(rest)]
        rows.append([(pad, -1, 0)] * (max_tokens - len(entries)) + entries)
    ids, question_of, position = torch.tensor(rows).unbind(-1)
    return ids, question_of, position
