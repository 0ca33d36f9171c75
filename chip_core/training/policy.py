"""The policy: merging a batch, decoder, output head and objective in one forward.

It is one module, so that DDP and FSDP2 can wrap it: the output head is in the root, and each pass
goes through the root's forward.

Shapes: B pairs, C tokens of a response, N tokens of all responses of one kind, D hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch, Responses
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import compute_objective
from chip_core.objectives.global_batch import FactsSource, table_columns
from chip_core.objectives.head import (
    DEFAULT_CHUNK,
    OutputHead,
    best_other_tokens,
    chunk_size,
    head_scores,
    token_logits,
)
from chip_core.objectives.losses import Inputs
from chip_core.objectives.parts import VIEWS, Reads
from chip_core.objectives.terms import (
    BatchObjective,
    ReferenceScores,
    ResponseReference,
    ResponseScores,
)
from chip_core.training.states import ResponseStates, response_states


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
            prefix_sharing: whether chosen and rejected responses share one prompt's pass.
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
        hidden = self.states(batch, views=views).views
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
    def logps(self, hidden: Tensor, responses: Responses) -> Tensor:
        """Return log p of each response token, (B, C), from the states that predict it, (N, D)."""
        ids = responses.ids[responses.token_indices]
        scores = head_scores(hidden, ids, self.head, chunk=self.logits_chunk)
        return scatter_tokens(scores.logps, responses)

    def states(self, batch: PairBatch, views: Collection[str] | None = None) -> ResponseStates:
        """Return the hidden states that predict a batch's responses, of `views` or (None) all."""
        return response_states(self.model, batch, prefix_sharing=self.prefix_sharing, views=views)

    @property
    def head(self) -> OutputHead:
        """The output head as it is now; if it is sharded, available only within a forward."""
        layer = self.model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)


def logits_chunk_size(model: Any, config: TrialConfig, device: torch.device) -> int:
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
