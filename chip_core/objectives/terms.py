"""The building blocks of the terms: sums over a response's tokens, of policy and reference.

Shapes: B pairs, T and C response tokens (padded on the right), D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ResponseScores:
    """The policy's and the reference's scores of one response per pair under one image."""

    policy_logps: Tensor  # (B, T) log p of each token
    reference_logps: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool, true on response tokens
    changed: Tensor  # (B, T) bool, true on tokens of a segment
    kl: Tensor | None = None  # (B, T) KL(reference || policy); only the token term needs it
    #: (B, T) the raw logit of each token, and log p of the most likely other one; if declared
    policy_logits: Tensor | None = None
    reference_logits: Tensor | None = None
    policy_best_other: Tensor | None = None
    reference_best_other: Tensor | None = None

    @property
    def any_changed(self) -> Tensor:
        """Whether the response has a changed token, (B,)."""
        return (self.changed & self.mask).any(-1)

    def token_weights(self, on_all: float, on_changed: float) -> Tensor:
        """Return `on_all` on response tokens, and `on_changed` more on changed ones, (B, T)."""
        dtype = self.policy_logps.dtype
        return on_all * self.mask.to(dtype) + on_changed * (self.changed & self.mask).to(dtype)

    def log_ratio(self, weights: Tensor | None = None, *, average: bool = False) -> Tensor:
        """Return Σ w·(log p_policy − log p_reference), (B,).

        Args:
            weights: (B, T); None: 1 on response tokens.
            average: whether to divide by Σ w; an empty sum stays 0.
        """
        policy = self.policy_sum(weights, average=average)
        return policy - self.reference_sum(weights, average=average)

    def policy_sum(self, weights: Tensor | None = None, *, average: bool = False) -> Tensor:
        """Return Σ w·log p_policy, (B,)."""
        return self.total(self.policy_logps, weights, average=average)

    def reference_sum(self, weights: Tensor | None = None, *, average: bool = False) -> Tensor:
        """Return Σ w·log p_reference, (B,)."""
        return self.total(self.reference_logps, weights, average=average)

    def divergence(self) -> Tensor:
        """Return D = Σ_t KL(reference || policy), (B,)."""
        assert self.kl is not None, "the token term needs the divergence"
        return self.total(self.kl)

    def total(
        self, values: Tensor, weights: Tensor | None = None, *, average: bool = False
    ) -> Tensor:
        """Return Σ w·(a value of each token) over the response, (B,); see `log_ratio`."""
        # where(), not only a product: padding may hold any value, infinities included.
        masked = torch.where(self.mask, values, torch.zeros_like(values))
        total = (masked if weights is None else masked * weights).sum(-1)
        if not average:
            return total
        count = (self.mask.to(values.dtype) if weights is None else weights).sum(-1)
        return total / torch.where(count == 0, torch.ones_like(count), count)


@dataclass(frozen=True, kw_only=True)
class BatchObjective:
    """The objective of a batch, before the mean over pairs."""

    loss: Tensor  # (B,)
    terms: dict[str, Tensor]  # active term -> (B,); its meaning depends on the form
    chosen_reward: Tensor | None  # (B,); None if the objective does not read its inputs
    rejected_reward: Tensor | None  # (B,)


@dataclass(frozen=True, kw_only=True)
class ResponseReference:
    """The reference's scores of one response per pair; undeclared ones are None."""

    logps: Tensor | None = None  # (B, C) log p of each token; padding may hold anything finite
    logits: Tensor | None = None  # (B, C) the raw logit of each token
    best_other: Tensor | None = None  # (B, C) log p of the most likely other token
    #: (B, C, D) the decoder's last hidden state that predicts each token; only if the divergence is
    #: needed
    hidden: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceScores:
    """The reference's scores of a batch, by view; undeclared ones are absent."""

    views: Mapping[str, ResponseReference] = field(default_factory=dict)
