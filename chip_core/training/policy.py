"""The policy, which computes decoder, output head and objective in one forward, and its reference.

It is one module, so that DDP and FSDP2 can wrap it: the output head is in the root, and each pass
goes through the root's forward. The frozen reference scores the same batches, or stored scores are
read instead.

Shapes: B pairs, C tokens of a response (padded on the right), N tokens of all responses of one
kind, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch, Responses
from chip_core.models.adapters import OriginalModel
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import BatchObjective, compute_objective
from chip_core.objectives.global_batch import FactsSource, table_columns
from chip_core.objectives.losses import Inputs
from chip_core.objectives.parts import VIEWS, Reads
from chip_core.objectives.scores import (
    DEFAULT_CHUNK,
    OutputHead,
    ReferenceScores,
    ResponseReference,
    ResponseScores,
    best_other_tokens,
    chunk_size,
    head_scores,
    token_logits,
)
from chip_core.training.states import ResponseStates, compute_response_states
from chip_core.utils.workers import Workers

if TYPE_CHECKING:
    from chip_core.data.preferences import PreferencePair


class Policy(nn.Module):
    """A model with its objective."""

    def __init__(
        self,
        model: Any,
        objective: ObjectiveConfig,
        *,
        prefix_sharing: bool = False,
        logits_chunk: int = DEFAULT_CHUNK,
    ) -> None:
        """Wrap a model.

        Args:
            model: the trained model, with its adapters.
            objective: the objective of the training.
            prefix_sharing: whether chosen and rejected responses share one pass over the prompt.
            logits_chunk: the number of positions whose logits are held at the same time.
        """
        super().__init__()
        self.model = model
        self.objective = objective
        self.prefix_sharing = prefix_sharing
        self.logits_chunk = logits_chunk

    def forward(
        self,
        batch: PairBatch,
        reference: ReferenceScores,
        reference_head: OutputHead | None = None,
        facts: FactsSource = None,
    ) -> BatchObjective:
        """Return the objective of each pair.

        Args:
            batch: on the model's device.
            reference: the reference's scores of the same batch.
            reference_head: `ReferenceSource.head`; None: this model's own.
            facts: of the global batch; see `losses.Inputs`.
        """
        views = self._score_views(batch, reference, reference_head)
        inputs = Inputs(views=views, fields=batch.fields, facts=facts)
        return compute_objective(self.objective, inputs)

    @torch.no_grad()
    def table_columns(self, batch: PairBatch, reference: ReferenceScores) -> dict[str, Tensor]:
        """Return each pair's columns, (B,) each, in the global batch's table; without a graph."""
        return table_columns(
            self.objective, self._score_views(batch, reference, None), batch.fields
        )

    def _score_views(
        self, batch: PairBatch, reference: ReferenceScores, reference_head: OutputHead | None
    ) -> dict[str, ResponseScores]:
        """Return the scores of each view that the objective reads."""
        responses, reference_views = batch.responses, reference.views
        reads = self.objective.policy_reads
        policy, kl = self._compute_scores(batch, reads, reference, reference_head)
        scored = {}
        for view in VIEWS:
            if view not in policy and view not in reference_views:
                continue
            policy_scores, reference_scores = policy.get(view), reference_views.get(view)
            response = responses[view]
            blank = torch.full(response.mask.shape, torch.nan, device=response.mask.device)
            logps = [
                None if part is None else part.logps for part in (policy_scores, reference_scores)
            ]
            scored[view] = ResponseScores(
                policy_logps=blank if logps[0] is None else logps[0],
                reference_logps=blank if logps[1] is None else logps[1],
                mask=response.mask,
                changed=response.changed,
                kl=kl.get(view),
                policy_logits=None if policy_scores is None else policy_scores.logits,
                reference_logits=None if reference_scores is None else reference_scores.logits,
                policy_best_other=None if policy_scores is None else policy_scores.best_other,
                reference_best_other=None
                if reference_scores is None
                else reference_scores.best_other,
            )
        return scored

    def _compute_scores(
        self,
        batch: PairBatch,
        reads: Reads,
        reference: ReferenceScores | None = None,
        reference_head: OutputHead | None = None,
        *,
        keep_hidden: bool = False,
    ) -> tuple[dict[str, ResponseReference], dict[str, Tensor]]:
        """Return this model's scores of a batch's views, and the divergence from a reference.

        Args:
            batch: on the model's device.
            reads: what is wanted of each view.
            reference: with hidden states, if the divergence is wanted.
            reference_head: turns those into logits; None: this model's own head.
            keep_hidden: whether to return the hidden states of chosen and rejected, too.
        """
        views = [view for view in reads if view in batch.responses]
        responses = {view: batch.responses[view] for view in views}
        hidden = self.compute_states(batch, views=views).views
        scores_by_view: dict[str, dict[str, Tensor]] = {view: {} for view in views}
        scored = {view: response for view, response in responses.items() if "logps" in reads[view]}
        kl: dict[str, Tensor] = {}
        if scored:
            reference_hidden, kl_gradients = self._divergence_inputs(reference, scored, hidden)
            scores = head_scores(
                torch.cat([hidden[view] for view in scored]),
                torch.cat([response.ids[response.token_indices] for response in scored.values()]),
                self.head,
                reference_hidden=reference_hidden,
                reference_head=reference_head,
                kl_gradients=kl_gradients,
                chunk=self.logits_chunk,
            )
            for view, logps in _split_by_view(scores.logps, scored).items():
                scores_by_view[view]["logps"] = logps
            kl = {} if scores.kl is None else _split_by_view(scores.kl, scored)
        for view, response in responses.items():
            if "logits" in reads[view]:
                values = token_logits(hidden[view], response.ids[response.token_indices], self.head)
                scores_by_view[view]["logits"] = scatter_tokens(values, response)
            if "best_other" in reads[view]:
                ids = best_other_tokens(
                    hidden[view], response.ids[response.token_indices], self.head, self.logits_chunk
                )
                best_scores = head_scores(hidden[view], ids, self.head, chunk=self.logits_chunk)
                scores_by_view[view]["best_other"] = scatter_tokens(best_scores.logps, response)
        if keep_hidden:
            for view in ("rejected", "chosen"):
                if view in scores_by_view:
                    scores_by_view[view]["hidden"] = scatter_tokens(hidden[view], responses[view])
        return {
            view: ResponseReference(**view_scores) for view, view_scores in scores_by_view.items()
        }, kl

    def _divergence_inputs(
        self,
        reference: ReferenceScores | None,
        scored: dict[str, Responses],
        hidden: Mapping[str, Tensor],
    ) -> tuple[Tensor | None, int]:
        """Return the reference's hidden states, and how many positions' divergence is trained."""
        if reference is None or not self.objective.needs_divergence:
            return None, 0
        reference_scores = {view: reference.views.get(view) for view in ("rejected", "chosen")}
        reference_hidden = torch.cat(
            [
                view_scores.hidden[scored[view].token_indices]
                for view, view_scores in reference_scores.items()
                if view_scores is not None and view_scores.hidden is not None
            ]
        )
        trains_chosen = self.objective.trains_chosen_divergence
        return reference_hidden, sum(
            len(hidden[view]) for view in reference_scores if trains_chosen or view == "rejected"
        )

    @torch.no_grad()
    def reference_scores(self, batch: PairBatch, reads: Reads | None = None) -> ReferenceScores:
        """Return a reference's scores for a training, computed by this model as it is now.

        Args:
            batch: on the model's device.
            reads: what is wanted of each view; None: all that the objective reads.
        """
        view_reads = self.objective.reference_reads if reads is None else reads
        if not any(view in batch.responses for view in view_reads):
            return ReferenceScores()
        views, _ = self._compute_scores(
            batch, view_reads, keep_hidden=self.objective.needs_divergence
        )
        return ReferenceScores(views=views)

    @torch.no_grad()
    def compute_logps(self, hidden: Tensor, responses: Responses) -> Tensor:
        """Return log p of each response token, (B, C), from the states that predict it, (N, D)."""
        ids = responses.ids[responses.token_indices]
        scores = head_scores(hidden, ids, self.head, chunk=self.logits_chunk)
        return scatter_tokens(scores.logps, responses)

    def compute_states(
        self, batch: PairBatch, views: Collection[str] | None = None
    ) -> ResponseStates:
        """Return the hidden states that predict a batch's responses, of `views` or (None) all."""
        return compute_response_states(
            self.model, batch, prefix_sharing=self.prefix_sharing, views=views
        )

    @property
    def head(self) -> OutputHead:
        """The output head as it is now; if it is sharded, available only within a forward."""
        layer = self.model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)


def get_logits_chunk_size(model: Any, config: TrialConfig, device: torch.device) -> int:
    """Return for how many positions a model on this device holds logits at the same time."""
    memory = None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    return chunk_size(config.engine.logits_chunk, len(model.get_output_embeddings().weight), memory)


def scatter_tokens(values: Tensor, responses: Responses) -> Tensor:
    """Return values of responses' tokens at their positions, (N, …) to (B, C, …); 0 elsewhere."""
    scattered = values.new_zeros((*responses.mask.shape, *values.shape[1:]))
    return scattered.index_put(responses.token_indices, values)


def _split_by_view(values: Tensor, responses: dict[str, Responses]) -> dict[str, Tensor]:
    """Split values, which cover the first of all positions, into (B, C) for each kind."""
    parts, start = {}, 0
    for view, response in responses.items():
        length = len(response.token_indices[0])
        if start < len(values):
            parts[view] = scatter_tokens(values[start : start + length], response)
        start += length
    return parts


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
        """Return the `scores` of some views, without computing others."""


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

    With adapters, it is the policy with its adapters disabled; otherwise a frozen copy of the
    trained weights.
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
        """Return the `scores` of some views, without computing others."""
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
