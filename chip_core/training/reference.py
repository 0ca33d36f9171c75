"""The frozen reference's scores of a batch's responses, and their source.

Shapes: B pairs, C tokens of a response (padded on the right), D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.adapters import OriginalModel
from chip_core.objectives.head import OutputHead
from chip_core.objectives.parts import Reads
from chip_core.objectives.terms import ReferenceScores, ResponseReference
from chip_core.utils.workers import Workers

if TYPE_CHECKING:
    from chip_core.data.preferences import PreferencePair
    from chip_core.training.policy import Policy


class ReferenceSource(Protocol):
    """The source of a training's reference scores."""

    @property
    def head(self) -> OutputHead | None:
        """The head that turns its hidden states into logits; None: the policy's own, frozen one."""

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return the reference's scores of a batch, on the batch's device, without a graph."""


class LiveReferenceSource(ReferenceSource, Protocol):
    """A reference that is computed for every batch."""

    def score_views(self, batch: PairBatch, reads: Reads) -> ReferenceScores:
        """Return the `scores` of some views alone, without computing others."""


@dataclass(frozen=True, kw_only=True)
class TrainingReference:
    """The reference of a training, and which parts of it are stored or computed."""

    source: ReferenceSource
    #: Returns a batch, on the CPU, with the stored features of its images.
    attach_features: Callable[[PairBatch], PairBatch] = lambda batch: batch
    #: `reference`: stored, partly stored, live. `image_features`: stored, computed.
    engine: Mapping[str, str] = field(
        default_factory=lambda: {"reference": "live", "image_features": "computed"}
    )
    notes: tuple[str, ...] = ()


class OpenedCaches(Protocol):
    """Reference caches that are complete and belong to this model."""

    def reference(self, live: Callable[[], LiveReferenceSource], /) -> TrainingReference:
        """Return the training's reference; `live` is called if not all of it is stored."""


class ReferenceCaches(Protocol):
    """Reference caches that a training may read (chip_core/reference_cache)."""

    def open(
        self,
        policy: Policy,
        config: TrialConfig,
        *,
        processor: Any,
        pairs: Sequence[PreferencePair],
        workers: Workers,
    ) -> OpenedCaches:
        """Open the complete caches of this model, which is not yet sharded, on all workers."""


class NoReference:
    """The reference of an objective that reads none."""

    head: OutputHead | None = None

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return empty scores."""
        return ReferenceScores()


class LiveReference:
    """The policy as it was before training, computed for every batch.

    With adapters, it is the policy with them switched off; else a frozen copy of the trained
    weights.
    """

    def __init__(self, policy: Policy, config: TrialConfig) -> None:
        """Keep the policy's weights as they are now."""
        self.original = OriginalModel(policy.model, config)
        self._scorer = _ReferenceForward(policy)
        self._head = policy.model.get_output_embeddings()
        self._rounds_hidden = config.reference_precision == "bf16"

    @property
    def head(self) -> OutputHead | None:
        """The output head before training; None: the policy's own, which is frozen."""
        weight = self.original.original_value(self._head.weight)
        if weight is None:
            return None
        bias = None if self._head.bias is None else self.original.original_value(self._head.bias)
        return OutputHead(weight=weight, bias=bias)

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return the scores of a batch by the policy before training."""
        scores: ReferenceScores = self.original(self._scorer, batch)
        return round_hidden(scores) if self._rounds_hidden else scores

    def score_views(self, batch: PairBatch, reads: Reads) -> ReferenceScores:
        """Return the `scores` of some views alone, without computing others."""
        scores: ReferenceScores = self.original(self._scorer, batch, reads)
        return round_hidden(scores) if self._rounds_hidden else scores


class _ReferenceForward(nn.Module):
    """`Policy.reference_scores` as a module's forward: parameters are swapped within a module."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: PairBatch, reads: Reads | None = None) -> ReferenceScores:
        return self.policy.reference_scores(batch, reads)


def round_hidden(scores: ReferenceScores) -> ReferenceScores:
    """Round hidden states as a store in bf16 does, so that using a store changes no figure."""

    def round_view(view_scores: ResponseReference) -> ResponseReference:
        return (
            view_scores
            if view_scores.hidden is None
            else replace(view_scores, hidden=view_scores.hidden.bfloat16())
        )

    return ReferenceScores(
        views={view: round_view(view_scores) for view, view_scores in scores.views.items()}
    )
