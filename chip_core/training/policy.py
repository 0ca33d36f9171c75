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
        views = self._scored(batch, reference, reference_head)
        inputs = Inputs(views=views, fields=batch.fields, facts=facts)
        return compute_objective(self.objective, inputs)

    @torch.no_grad()
    def table_columns(self, batch: PairBatch, reference: ReferenceScores) -> dict[str, Tensor]:
        """Return each pair's columns, (B,) each, in the global batch's table; without a graph."""
        return table_columns(self.objective, self._scored(batch, reference, None), batch.fields)

    def _scored(
        self, batch: PairBatch, reference: ReferenceScores, reference_head: OutputHead | None
    ) -> dict[str, ResponseScores]:
        """Return the scores of each view that the objective reads."""
        responses, said = batch.responses, reference.views
        reads = self.objective.policy_reads
        policy, kl = self._said(batch, reads, reference, reference_head)
        scored = {}
        for view in VIEWS:
            if view not in policy and view not in said:
                continue
            own, other = policy.get(view), said.get(view)
            of = responses[view]
            nothing = torch.full(of.mask.shape, torch.nan, device=of.mask.device)
            logps = [None if part is None else part.logps for part in (own, other)]
            scored[view] = ResponseScores(
                policy_logps=nothing if logps[0] is None else logps[0],
                reference_logps=nothing if logps[1] is None else logps[1],
                mask=of.mask,
                changed=of.changed,
                kl=kl.get(view),
                policy_logits=None if own is None else own.logits,
                reference_logits=None if other is None else other.logits,
                policy_best_other=None if own is None else own.best_other,
                reference_best_other=None if other is None else other.best_other,
            )
        return scored

    def _said(
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
        wanted = [view for view in reads if view in batch.responses]
        responses = {view: batch.responses[view] for view in wanted}
        hidden = self.states(batch, views=wanted).views
        found: dict[str, dict[str, Tensor]] = {view: {} for view in wanted}
        scored = {view: of for view, of in responses.items() if "logps" in reads[view]}
        kl: dict[str, Tensor] = {}
        if scored:
            of_reference, trained = self._divergent(reference, scored, hidden)
            scores = head_scores(
                torch.cat([hidden[view] for view in scored]),
                torch.cat([of.ids[of.token_indices] for of in scored.values()]),
                self.head,
                reference_hidden=of_reference,
                reference_head=reference_head,
                kl_gradients=trained,
                chunk=self.logits_chunk,
            )
            for view, logps in _by_kind(scores.logps, scored).items():
                found[view]["logps"] = logps
            kl = {} if scores.kl is None else _by_kind(scores.kl, scored)
        for view, of in responses.items():
            if "logits" in reads[view]:
                values = token_logits(hidden[view], of.ids[of.token_indices], self.head)
                found[view]["logits"] = spread(values, of)
            if "best_other" in reads[view]:
                ids = best_other_tokens(
                    hidden[view], of.ids[of.token_indices], self.head, self.logits_chunk
                )
                of_best = head_scores(hidden[view], ids, self.head, chunk=self.logits_chunk)
                found[view]["best_other"] = spread(of_best.logps, of)
        if keep_hidden:
            for view in ("rejected", "chosen"):
                if view in found:
                    found[view]["hidden"] = spread(hidden[view], responses[view])
        return {view: ResponseReference(**said) for view, said in found.items()}, kl

    def _divergent(
        self,
        reference: ReferenceScores | None,
        scored: dict[str, Responses],
        hidden: Mapping[str, Tensor],
    ) -> tuple[Tensor | None, int]:
        """Return the reference's hidden states, and how many positions' divergence is trained."""
        if reference is None or not self.objective.needs_divergence:
            return None, 0
        known = {view: reference.views.get(view) for view in ("rejected", "chosen")}
        of_reference = torch.cat(
            [
                said.hidden[scored[view].token_indices]
                for view, said in known.items()
                if said is not None and said.hidden is not None
            ]
        )
        both = self.objective.trains_chosen_divergence
        return of_reference, sum(len(hidden[view]) for view in known if both or view == "rejected")

    @torch.no_grad()
    def reference_scores(self, batch: PairBatch, reads: Reads | None = None) -> ReferenceScores:
        """Return a reference's scores for a training, computed by this model as it is now.

        Args:
            batch: on the model's device.
            reads: what is wanted of each view; None: all that the objective reads.
        """
        wanted = self.objective.reference_reads if reads is None else reads
        if not any(view in batch.responses for view in wanted):
            return ReferenceScores()
        said, _ = self._said(batch, wanted, keep_hidden=self.objective.needs_divergence)
        return ReferenceScores(views=said)

    @torch.no_grad()
    def logps(self, hidden: Tensor, responses: Responses) -> Tensor:
        """Return log p of each response token, (B, C), from the states that predict it, (N, D)."""
        ids = responses.ids[responses.token_indices]
        scores = head_scores(hidden, ids, self.head, chunk=self.logits_chunk)
        return spread(scores.logps, responses)

    def states(self, batch: PairBatch, views: Collection[str] | None = None) -> ResponseStates:
        """Return the hidden states that predict a batch's responses, of `views` or (None) all."""
        return response_states(self.model, batch, prefix_sharing=self.prefix_sharing, views=views)

    @property
    def head(self) -> OutputHead:
        """The output head as it is now; if it is sharded, available only within a forward."""
        layer = self.model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)


def chunk_of(model: Any, config: TrialConfig, device: torch.device) -> int:
    """Return for how many positions a model on this device holds logits at the same time."""
    memory = None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    return chunk_size(config.engine.logits_chunk, len(model.get_output_embeddings().weight), memory)


def spread(values: Tensor, responses: Responses) -> Tensor:
    """Return values of responses' tokens at their positions, (N, …) to (B, C, …); 0 elsewhere."""
    whole = values.new_zeros((*responses.mask.shape, *values.shape[1:]))
    return whole.index_put(responses.token_indices, values)


def _by_kind(values: Tensor, responses: dict[str, Responses]) -> dict[str, Tensor]:
    """Split values, which cover the first of all positions, into (B, C) for each kind."""
    parted, start = {}, 0
    for kind, of in responses.items():
        length = len(of.token_indices[0])
        if start < len(values):
            parted[kind] = spread(values[start : start + length], of)
        start += length
    return parted
