"""Compute a step as the released code does: 3 policy and 4 reference sequences, all logits.

- The policy reads chosen, rejected, and chosen under the rejected image as one padded batch; the
  reference reads chosen and rejected twice, under either image. This includes plain DPO.
- Labels are passed to the model, which computes an unused cross-entropy over all logits.
- Log-softmax and divergence are taken at every position, image and prompt included; the policy's
  log-softmax twice.
- The rejected response under the rejected image is never used.

Source: LVUGAI/CHiP at e7f5193, `llava_trainer.py`: its structure, with this package's objective in
place of its own loss, so that gradients can be compared.

Shapes: B pairs, T tokens of the longest sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import compute_objective
from chip_core.objectives.losses import Inputs
from chip_core.objectives.scores import ResponseScores

IGNORED = -100


def compute_naive_loss(
    policy: Any, reference: Any, batch: PairBatch, objective: ObjectiveConfig
) -> Tensor:
    """Return the mean objective of a batch whose prompts all have the same length."""
    assert batch.rejected_image_prompts is not None
    pairs, length = len(batch), _find_longest(batch)
    true, other = batch.prompts, batch.rejected_image_prompts
    chosen, rejected = batch.chosen, batch.rejected
    policy_logits, labels = _compute_logits(
        policy, [(true, chosen), (true, rejected), (other, chosen)], length
    )
    with torch.no_grad():
        reference_logits, _ = _compute_logits(reference, [(true, chosen), (true, rejected)], length)
        other_logits, _ = _compute_logits(reference, [(other, chosen), (other, rejected)], length)

    next_ids = labels[:, 1:].clamp(min=0).unsqueeze(-1)
    of_two = next_ids[: 2 * pairs]
    log_p = policy_logits[: 2 * pairs, :-1].log_softmax(-1)
    r = reference_logits[:, :-1].softmax(-1)
    log_r = r.log()
    kl = (r * (log_r - log_p)).sum(-1)
    reference_logps = log_r.gather(-1, of_two).squeeze(-1)
    other_logps = other_logits[:, :-1].log_softmax(-1).gather(-1, of_two).squeeze(-1)
    policy_logps = policy_logits[:, :-1].log_softmax(-1).gather(-1, next_ids).squeeze(-1)

    def scores(place: int, responses: Responses, known: Tensor, *, kl: Tensor | None) -> Any:
        rows = slice(place * pairs, (place + 1) * pairs)
        changed = _place_behind(responses.changed, true.ids.shape[1], length)
        return ResponseScores(
            policy_logps=policy_logps[rows],
            reference_logps=known,
            mask=labels[rows, 1:] != IGNORED,
            changed=changed[:, 1:],
            kl=None if kl is None else kl[rows],
        )

    views = {
        "chosen": scores(0, chosen, reference_logps[:pairs], kl=kl),
        "rejected": scores(1, rejected, reference_logps[pairs:], kl=kl),
        "rejected_image": scores(2, chosen, other_logps[:pairs], kl=None),
    }
    return compute_objective(objective, Inputs(views=views)).loss.mean()


def _compute_logits(
    model: Any, sequences: Sequence[tuple[Prompts, Responses]], length: int
) -> tuple[Tensor, Tensor]:
    """Return all logits, (n·B, T, V), and labels, (n·B, T)."""
    ids, masks, labels = [], [], []
    for prompts, responses in sequences:
        start = prompts.ids.shape[1]
        own = _place_behind(responses.ids, start, length)
        own[:, :start] = prompts.ids
        of_response = _place_behind(responses.mask, start, length)
        mask = of_response.clone()
        mask[:, :start] = prompts.mask
        ids.append(own)
        masks.append(mask)
        labels.append(own.masked_fill(~of_response, IGNORED))
    output = model(
        input_ids=torch.cat(ids),
        attention_mask=torch.cat(masks).long(),
        labels=torch.cat(labels),
        pixel_values=torch.cat([prompts.inputs["pixel_values"] for prompts, _ in sequences]),
        use_cache=False,
    )
    return output.logits, torch.cat(labels)


def _place_behind(values: Tensor, start: int, length: int) -> Tensor:
    """Return values in rows of a length, from an index on; else 0."""
    rows = values.new_zeros(len(values), length)
    rows[:, start : start + values.shape[1]] = values
    return rows


def _find_longest(batch: PairBatch) -> int:
    return batch.prompts.ids.shape[1] + max(batch.chosen.ids.shape[1], batch.rejected.ids.shape[1])
