"""The objective computed from full logits: slow and simple.

Every faster path is compared with these functions, in float64 where exactness is promised.

Shapes: B sequences, T tokens, V vocabulary, P tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import compute_objective
from chip_core.objectives.global_batch import BatchFacts, BatchTable, State, compute_batch_facts
from chip_core.objectives.losses import Inputs
from chip_core.objectives.parts import VIEWS, changed_tokens
from chip_core.objectives.scores import ResponseScores


def token_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log p(ids) per token, (B, T).

    Args:
        logits: (B, T, V), row t already aligned with the token it predicts.
        ids: (B, T).
    """
    return torch.log_softmax(logits, dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def token_kl(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """Return KL(reference || policy) of the next-token distributions per token, (B, T)."""
    reference = torch.log_softmax(reference_logits, dim=-1)
    policy = torch.log_softmax(policy_logits, dim=-1)
    return (reference.exp() * (reference - policy)).sum(-1)


def best_other_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """Return log p of the most likely token other than ids, per token, (B, T)."""
    logps = torch.log_softmax(logits, dim=-1)
    return logps.scatter(-1, ids.unsqueeze(-1), -torch.inf).amax(-1)


@dataclass(frozen=True, kw_only=True)
class ObjectiveOutput:
    """The objective of one pair."""

    loss: Tensor  # 0-d
    terms: dict[str, Tensor]  # active term -> 0-d; its meaning depends on the form
    chosen_reward: Tensor  # 0-d
    rejected_reward: Tensor  # 0-d


@dataclass(frozen=True, kw_only=True)
class PairLogits:
    """The full logits of one pair.

    Logits by view (`chosen`, `rejected`, `rejected_image`, `other`, `rejected_image_rejected` and
    so on: see `parts.VIEWS`), (P + tokens of the response, V): row t predicts token t + 1. Further
    rows are padding and are ignored.
    """

    prompt_ids: Tensor  # (P,), with the image's placeholders
    chosen_ids: Tensor
    rejected_ids: Tensor
    other_ids: Tensor | None = None  # a third response
    policy: Mapping[str, Tensor | None] = field(default_factory=dict)
    reference: Mapping[str, Tensor | None] = field(default_factory=dict)
    #: Columns of the row: name -> {key: a number, or a list with one per token}, or a number.
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BatchOutput:
    """The objective of a global batch."""

    loss: Tensor  # 0-d
    losses: Tensor  # (B,); `loss` is their mean
    terms: dict[str, Tensor]  # (B,) each
    state: State  # after the batch
    rewards: tuple[Tensor, Tensor]  # (B,) of chosen and rejected; 0 if they are not read


def batch_from_logits(
    objective: ObjectiveConfig,
    pairs: Sequence[PairLogits],
    *,
    state: State | None = None,
    kept: Sequence[int] | None = None,
    eos_id: int | None = None,
) -> BatchOutput:
    """Return the objective of a global batch; differentiable in the policy's logits.

    Args:
        objective: the objective as configured.
        pairs: the batch.
        state: the state after the previous batch (`BatchOutput.state`); None: this is the first.
        kept: the pairs that DAMA keeps; None: they are drawn.
        eos_id: see `objective_from_logits`.

    Raises:
        ValueError: logits are missing or shorter than their ids, or a prompt or field is missing.
    """
    pair_views = [_score_views(objective, pair, eos_id) for pair in pairs]
    views = {view: _stack_scores([pair[view] for pair in pair_views]) for view in pair_views[0]}
    next_state: State = {}

    def compute_facts(table: BatchTable) -> BatchFacts:
        batch, batch_state = compute_batch_facts(objective, table, state or {}, kept=kept)
        next_state.update(batch_state)
        return batch

    inputs = Inputs(views=views, fields=_stack_fields(objective.fields, pairs), facts=compute_facts)
    result = compute_objective(objective, inputs)
    chosen, rejected = (
        torch.zeros_like(result.loss) if reward is None else reward
        for reward in (result.chosen_reward, result.rejected_reward)
    )
    return BatchOutput(
        loss=result.loss.mean(),
        losses=result.loss,
        terms=result.terms,
        state=next_state,
        rewards=(chosen, rejected),
    )


def objective_from_logits(  # noqa: PLR0913 (one argument per tensor)
    objective: ObjectiveConfig,
    *,
    prompt_ids: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    policy_chosen_logits: Tensor,
    policy_rejected_logits: Tensor,
    policy_rejected_image_logits: Tensor | None,
    reference_chosen_logits: Tensor,
    reference_rejected_logits: Tensor,
    reference_rejected_image_logits: Tensor | None,
    other_ids: Tensor | None = None,
    policy_logits: Mapping[str, Tensor] | None = None,
    reference_logits: Mapping[str, Tensor] | None = None,
    fields: Mapping[str, Any] | None = None,
    eos_id: int | None = None,
) -> ObjectiveOutput:
    """Return the objective of one pair; differentiable in the policy's logits.

    Args:
        objective: the objective as configured.
        prompt_ids: (P,) token ids, with the image's placeholders; with `segment.scope` `sequence`
            they are compared as given.
        chosen_ids: (C,) the chosen response.
        rejected_ids: (R,) the rejected response.
        policy_chosen_logits: (P + C, V), row t predicting token t + 1; any float dtype. Further
            rows are padding and are ignored.
        policy_rejected_logits: (P + R, V).
        policy_rejected_image_logits: (P + C, V), the chosen response under the rejected image;
            None without a visual term.
        reference_chosen_logits: as the policy's.
        reference_rejected_logits: as the policy's.
        reference_rejected_image_logits: as the policy's.
        other_ids: a third response; see `PairLogits`, also for the arguments below.
        policy_logits: logits of further views, by name.
        reference_logits: as the policy's.
        fields: columns of the pair's row.
        eos_id: the token that ends both responses; scored, and counted as changed only with the
            scope `sequence`.

    Raises:
        ValueError: logits are missing or shorter than their ids, or there is no prompt.
    """
    pair = PairLogits(
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected_ids,
        other_ids=other_ids,
        fields=fields or {},
        policy={
            "chosen": policy_chosen_logits,
            "rejected": policy_rejected_logits,
            "rejected_image": policy_rejected_image_logits,
            **(policy_logits or {}),
        },
        reference={
            "chosen": reference_chosen_logits,
            "rejected": reference_rejected_logits,
            "rejected_image": reference_rejected_image_logits,
            **(reference_logits or {}),
        },
    )
    result = batch_from_logits(objective, [pair], eos_id=eos_id)
    chosen, rejected = result.rewards
    return ObjectiveOutput(
        loss=result.losses[0],
        terms={name: value[0] for name, value in result.terms.items()},
        chosen_reward=chosen[0],
        rejected_reward=rejected[0],
    )


def _score_views(
    objective: ObjectiveConfig, pair: PairLogits, eos_id: int | None
) -> dict[str, ResponseScores]:
    """Return the scores of a pair's views that are read, (1, T) each."""
    if not len(pair.prompt_ids):
        raise ValueError("prompt_ids is empty: nothing predicts a response's first token")
    chosen_changed, rejected_changed = changed_tokens(
        objective.segment_scope,
        pair.prompt_ids.tolist(),
        pair.chosen_ids.tolist(),
        pair.rejected_ids.tolist(),
        insertions=objective.segment.insertions,
        eos_id=eos_id,
    )
    responses = {
        "chosen": (pair.chosen_ids, chosen_changed),
        "rejected": (pair.rejected_ids, rejected_changed),
        "other": (pair.other_ids, []),
    }
    reads = {"policy": objective.policy_reads, "reference": objective.reference_reads}
    scores = {}
    for view in objective.views:
        ids, changed = responses[VIEWS[view][1]]
        if ids is None:
            raise ValueError(f"other_ids: None, and {view} is read")
        model_logits = {
            model: _response_logits(
                f"{model}_{view}_logits", getattr(pair, model).get(view), len(pair.prompt_ids), ids
            )
            for model in reads
            if view in reads[model]
        }
        scores[view] = _score_response(ids, changed, model_logits)
    return scores


def _response_logits(name: str, logits: Tensor | None, prompt_length: int, ids: Tensor) -> Tensor:
    """Return the rows that predict a response, (1, T, V)."""
    row_count = "None" if logits is None else f"{len(logits)} rows"
    if logits is None or len(logits) < prompt_length + len(ids) - 1:
        raise ValueError(
            f"{name}: {row_count}, fewer than {prompt_length} tokens of the prompt and "
            f"{len(ids)} of the response take"
        )
    # Row t predicts token t + 1.
    return logits[prompt_length - 1 : prompt_length - 1 + len(ids)].unsqueeze(0)


def _score_response(ids: Tensor, changed: list[int], rows: Mapping[str, Tensor]) -> ResponseScores:
    """Return all scores of one response.

    Args:
        ids: (T,) the response.
        changed: positions of its changed tokens.
        rows: (1, T, V) of policy and reference; quantities without rows are not computed.
    """
    changed_mask = torch.zeros(1, len(ids), dtype=torch.bool, device=ids.device)
    changed_mask[0, changed] = True
    tokens = ids.long().unsqueeze(0)
    blank = torch.full_like(next(iter(rows.values()))[..., 0], torch.nan, requires_grad=False)
    values = {"policy_logps": blank, "reference_logps": blank}
    for model, logits in rows.items():
        values[f"{model}_logps"] = token_logps(logits, tokens)
        values[f"{model}_logits"] = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        values[f"{model}_best_other"] = best_other_logps(logits, tokens)
    if len(rows) == 2:
        values["kl"] = token_kl(rows["reference"], rows["policy"])
    return ResponseScores(mask=torch.ones_like(changed_mask), changed=changed_mask, **values)


def _stack_scores(rows: Sequence[ResponseScores]) -> ResponseScores:
    """Return single responses stacked to a batch, padded on the right."""
    names = [name for name, value in vars(rows[0]).items() if value is not None]
    return ResponseScores(
        **{name: _stack_or_pad([getattr(row, name)[0] for row in rows]) for name in names}
    )


def _stack_fields(columns: Sequence[str], pairs: Sequence[PairLogits]) -> dict[str, Tensor]:
    """Return columns of rows as numbers, (B,), or (B, T) for one per token."""
    dtype = next(logits.dtype for logits in pairs[0].policy.values() if logits is not None)
    fields: dict[str, Tensor] = {}
    for column in columns:
        if not all(column in pair.fields for pair in pairs):
            raise ValueError(f"fields: no {column}, which the objective reads")
        cells = [pair.fields[column] for pair in pairs]
        for key in cells[0] if isinstance(cells[0], Mapping) else ("",):
            values = [torch.as_tensor(cell[key] if key else cell, dtype=dtype) for cell in cells]
            name = f"{column}/{key}" if key else column
            fields[name] = _stack_or_pad(values)
    return fields


def _stack_or_pad(values: list[Tensor]) -> Tensor:
    if not values[0].ndim:
        return torch.stack(values)
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
