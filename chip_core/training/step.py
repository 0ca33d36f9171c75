"""One forward pass of the objective over a batch of pairs.

Shapes: B pairs, T tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from chip_core.data.batches import PairBatch, Sequences
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import batch_objective
from chip_core.objectives.logps import token_kl, token_logps
from chip_core.objectives.terms import BatchObjective, ResponseScores


def batch_loss(
    policy: Any, reference: Any, batch: PairBatch, objective: ObjectiveConfig, *, bf16: bool = False
) -> BatchObjective:
    """Return the objective of each pair of a batch.

    Every response goes through policy and reference by itself, with whole logits: the plain way.
    """
    with_kl = objective.needs_divergence

    def scores(sequences: Sequences, *, kl: bool) -> ResponseScores:
        with torch.no_grad():
            reference_logits = _logits(reference, sequences, bf16=bf16)
        policy_logits = _logits(policy, sequences, bf16=bf16)
        ids, mask = sequences.input_ids[:, 1:], sequences.response[:, 1:]
        return ResponseScores(
            policy_logps=token_logps(policy_logits, ids),
            reference_logps=token_logps(reference_logits, ids),
            mask=mask,
            changed=sequences.changed[:, 1:],
            kl=token_kl(reference_logits, policy_logits) if kl else None,
        )

    return batch_objective(
        objective,
        chosen=scores(batch.chosen, kl=with_kl),
        rejected=scores(batch.rejected, kl=with_kl),
        rejected_image=None
        if batch.rejected_image is None
        else scores(batch.rejected_image, kl=False),
    )


def _logits(model: Any, sequences: Sequences, *, bf16: bool) -> Tensor:
    """Return logits in fp32, row t predicting token t + 1, (B, T − 1, V)."""
    device = sequences.input_ids.device.type
    precision: AbstractContextManager[Any] = (
        torch.autocast(device, dtype=torch.bfloat16) if bf16 else nullcontext()
    )
    with precision:
        output = model(
            input_ids=sequences.input_ids,
            attention_mask=sequences.attention_mask,
            use_cache=False,
            **sequences.inputs,
        )
    logits: Tensor = output.logits[:, :-1]
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
