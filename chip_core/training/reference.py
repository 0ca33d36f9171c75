"""What the frozen reference says of a batch's responses, and where that comes from.

Shapes: B pairs, C tokens of a response (padded on the right), D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from chip_core.config import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.adapters import Original
from chip_core.objectives.head import OutputHead

if TYPE_CHECKING:
    from chip_core.training.policy import Policy


@dataclass(frozen=True, kw_only=True)
class ResponseReference:
    """What the reference says of one response a pair."""

    logps: Tensor  # (B, C) log p of each response token; padding may hold anything finite
    #: (B, C, D) the decoder's last hidden state that predicts each token; only where the
    #: divergence is needed
    hidden: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceScores:
    """What the reference says of a batch."""

    chosen: ResponseReference
    rejected: ResponseReference
    rejected_image: ResponseReference | None = None  # never needs hidden states


class ReferenceSource(Protocol):
    """Where a training's reference comes from."""

    @property
    def head(self) -> OutputHead | None:
        """What turns its hidden states into logits; None: the policy's own, which is frozen."""

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return what the reference says of a batch, on the batch's device, without a graph."""


class LiveReference:
    """The policy as it was before training, computed anew for every batch.

    With adapters that is the policy with them switched off; else one frozen copy of what is
    trained.
    """

    def __init__(self, policy: Policy, config: TrialConfig) -> None:
        """Keep the policy's weights as they are now."""
        self.original = Original(policy.model, config)
        self._scorer = _AsReference(policy)
        self._head = policy.model.get_output_embeddings()

    @property
    def head(self) -> OutputHead | None:
        """The output head as it was; None: the policy's own, which is frozen."""
        weight = self.original.of(self._head.weight)
        if weight is None:
            return None
        bias = None if self._head.bias is None else self.original.of(self._head.bias)
        return OutputHead(weight=weight, bias=bias)

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return what the policy said of a batch before it was trained."""
        scores: ReferenceScores = self.original(self._scorer, batch)
        return scores


class _AsReference(nn.Module):
    """`Policy.reference_scores` as a module's forward: parameters are put aside for a module."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: PairBatch) -> ReferenceScores:
        return self.policy.reference_scores(batch)
