"""Per-token log-probabilities and divergences from logits.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
