"""The terms of the objective as pure functions of per-token tensors.

Shapes: B pairs, T response tokens (padded).
Source: CHiP paper, section 3; the token term is TDPO's with a stop-gradient on the chosen side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chip_core.objectives.config import ObjectiveConfig


@dataclass(frozen=True, kw_only=True)
class ResponseScores:
    """What policy and reference say of one response a pair under one image."""

    policy_logps: Tensor  # (B, T) log p of each token
    reference_logps: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, true on response tokens
    changed: Tensor  # (B, T) bool, true on tokens of a segment
    kl: Tensor | None = None  # (B, T) KL(reference || policy); only the token term needs it

    def log_ratio(self) -> Tensor:
        """Return lp_policy − lp_reference summed over the response, (B,)."""
        return self._sum(self.policy_logps - self.reference_logps, self.mask)

    def changed_log_ratio(self) -> Tensor:
        """Return the same sum over changed tokens alone, (B,)."""
        return self._sum(self.policy_logps - self.reference_logps, self.changed & self.mask)

    def divergence(self) -> Tensor:
        """Return D = Σ_t KL(reference || policy), (B,)."""
        assert self.kl is not None, "the token term needs the divergence"
        return self._sum(self.kl, self.mask)

    @staticmethod
    def _sum(values: Tensor, where: Tensor) -> Tensor:
        # where() and not a product: padding may hold anything, infinities included.
        return torch.where(where, values, torch.zeros_like(values)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class BatchObjective:
    """The objective of a batch, before the mean over pairs."""

    loss: Tensor  # (B,)
    terms: dict[str, Tensor]  # active term -> (B,), before its weight
    chosen_reward: Tensor  # (B,) beta (lp_policy − lp_reference) of the chosen response
    rejected_reward: Tensor  # (B,)


def batch_objective(
    config: ObjectiveConfig,
    *,
    chosen: ResponseScores,
    rejected: ResponseScores,
    rejected_image: ResponseScores | None,
) -> BatchObjective:
    """Return the objective of each pair (paper form: a weighted sum of separate losses).

    Args:
        config: the objective.
        chosen: the chosen response under the image.
        rejected: the rejected response under the image.
        rejected_image: the chosen response under the rejected image; None without a visual term.
    """
    beta = config.beta
    terms: dict[str, Tensor] = {}
    for term in config.active_terms:
        if term == "response":
            # −log σ(β Δ_r), DPO
            terms[term] = -F.logsigmoid(beta * (chosen.log_ratio() - rejected.log_ratio()))
        elif term == "segment":
            # −log σ(β Δ_s); 0 and not log 2 where nothing changed
            margin = chosen.changed_log_ratio() - rejected.changed_log_ratio()
            any_changed = (chosen.changed & chosen.mask).any(-1) | (
                rejected.changed & rejected.mask
            ).any(-1)
            loss = -F.logsigmoid(beta * margin)
            terms[term] = torch.where(any_changed, loss, torch.zeros_like(loss))
        elif term == "token":
            # β (D_l − sg D_w): only the rejected response gets its gradient
            terms[term] = beta * (rejected.divergence() - chosen.divergence().detach())
        else:
            assert term == "visual" and rejected_image is not None
            # −log σ(β Δ_v): the chosen response under the image against the rejected image
            margin = chosen.log_ratio() - rejected_image.log_ratio()
            terms[term] = -F.logsigmoid(beta * margin)
    weighted = [config.weight(term) * terms[term] for term in config.active_terms]
    return BatchObjective(
        loss=torch.stack(weighted).sum(0),
        terms=terms,
        chosen_reward=beta * chosen.log_ratio().detach(),
        rejected_reward=beta * rejected.log_ratio().detach(),
    )
