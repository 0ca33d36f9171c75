"""From hidden states to log-probabilities and divergences, through the output head.

Shapes: N positions, M ≤ N positions with a divergence, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OutputHead:
    """What turns hidden states into logits: h Wᵀ + b."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)


def head_scores(
    hidden: Tensor,
    ids: Tensor,
    head: OutputHead,
    *,
    reference_hidden: Tensor | None = None,
    reference_head: OutputHead | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return (log p(ids), KL(reference || policy) of the first M positions).

    Args:
        hidden: (N, D).
        ids: (N,) the tokens predicted.
        head: the policy's.
        reference_hidden: (M, D); None: no divergence.
        reference_head: the reference's.
    """
    policy = _log_probabilities(hidden, head)
    logps = policy.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    if reference_hidden is None:
        return logps, None
    assert reference_head is not None
    reference = _log_probabilities(reference_hidden, reference_head)
    kl = (reference.exp() * (reference - policy[: len(reference)])).sum(-1)
    return logps, kl


def _log_probabilities(hidden: Tensor, head: OutputHead) -> Tensor:
    logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return torch.log_softmax(logits, -1)
