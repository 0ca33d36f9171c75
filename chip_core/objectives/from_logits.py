"""The objective of one pair from whole logits: slow and plain.

Every faster path is compared with this function, in float64 where exactness is promised.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import batch_objective
from chip_core.objectives.segments import changed_tokens
from chip_core.objectives.terms import ResponseScores


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


@dataclass(frozen=True, kw_only=True)
class ObjectiveOutput:
    """The objective of one pair."""

    loss: Tensor  # 0-d
    terms: dict[str, Tensor]  # active term -> 0-d; see the form for what it is
    chosen_reward: Tensor  # 0-d
    rejected_reward: Tensor  # 0-d


def objective_from_logits(  # noqa: PLR0913 (a tensor each)
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
    eos_id: int | None = None,
) -> ObjectiveOutput:
    """Return the objective of one pair; differentiable in the policy's logits.

    Args:
        objective: the objective as configured.
        prompt_ids: (P,) token ids, the image's placeholders included; where `segment.scope` is
            `sequence` they are compared as given.
        chosen_ids: (C,) the chosen response.
        rejected_ids: (R,) the rejected response.
        policy_chosen_logits: (P + C, V), row t predicting token t + 1; any float dtype. Rows
            beyond are padding, and not looked at.
        policy_rejected_logits: (P + R, V).
        policy_rejected_image_logits: (P + C, V), the chosen response under the rejected image;
            None without a visual term.
        reference_chosen_logits: as the policy's.
        reference_rejected_logits: as the policy's.
        reference_rejected_image_logits: as the policy's.
        eos_id: an end of sequence with which both responses end; scored, and changed in
            the scope `sequence` only.

    Raises:
        ValueError: logits are not there or shorter than their ids, or there is no prompt.
    """
    if not len(prompt_ids):
        raise ValueError("prompt_ids is empty: nothing predicts a response's first token")
    changed_chosen, changed_rejected = changed_tokens(
        objective.segment_scope,
        prompt_ids.tolist(),
        chosen_ids.tolist(),
        rejected_ids.tolist(),
        insertions=objective.segment.insertions,
        eos_id=eos_id,
    )
    scores = partial(_scores, len(prompt_ids))
    rejected_image = None
    if objective.needs_rejected_image:
        rejected_image = scores(
            "rejected_image",
            chosen_ids,
            changed_chosen,
            policy_rejected_image_logits,
            reference_rejected_image_logits,
        )
    result = batch_objective(
        objective,
        chosen=scores(
            "chosen", chosen_ids, changed_chosen, policy_chosen_logits, reference_chosen_logits
        ),
        rejected=scores(
            "rejected",
            rejected_ids,
            changed_rejected,
            policy_rejected_logits,
            reference_rejected_logits,
        ),
        rejected_image=rejected_image,
    )
    return ObjectiveOutput(
        loss=result.loss[0],
        terms={name: value[0] for name, value in result.terms.items()},
        chosen_reward=result.chosen_reward[0],
        rejected_reward=result.rejected_reward[0],
    )


def _scores(
    start: int,
    what: str,
    ids: Tensor,
    changed: list[int],
    policy: Tensor | None,
    reference: Tensor | None,
) -> ResponseScores:
    """Return what a term reads of one response.

    Args:
        start: tokens of the prompt.
        what: the logits' name, as an error says it.
        ids: (C,) the response.
        changed: places of its tokens that changed.
        policy: at least (start + C - 1, V).
        reference: as the policy's.
    """
    length = len(ids)
    for who, logits in (("policy", policy), ("reference", reference)):
        rows = "None" if logits is None else f"{len(logits)} rows"
        if logits is None or len(logits) < start + length - 1:
            raise ValueError(
                f"{who}_{what}_logits: {rows}, fewer than {start} tokens of the prompt and "
                f"{length} of the response take"
            )
    assert policy is not None and reference is not None
    places = slice(start - 1, start - 1 + length)  # row t predicts token t + 1
    policy_rows, reference_rows = policy[places].unsqueeze(0), reference[places].unsqueeze(0)
    marks = torch.zeros(1, length, dtype=torch.bool, device=ids.device)
    marks[0, changed] = True
    return ResponseScores(
        policy_logps=token_logps(policy_rows, ids.long().unsqueeze(0)),
        reference_logps=token_logps(reference_rows, ids.long().unsqueeze(0)),
        mask=torch.ones_like(marks),
        changed=marks,
        kl=token_kl(reference_rows, policy_rows),
    )
