"""The policy: a batch's merge, decoder, output head and objective in one forward.

One module, so that DDP and FSDP2 can wrap it: the output head lies in the root, and each pass
goes through the root's forward.

Shapes: B pairs, C tokens of a response, N tokens of all responses of one kind, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chip_core.data.tensors import PairBatch, Responses
from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.forms import batch_objective
from chip_core.objectives.head import CHUNK, OutputHead, head_scores
from chip_core.objectives.terms import (
    BatchObjective,
    ReferenceScores,
    ResponseReference,
    ResponseScores,
)
from chip_core.training.states import ResponseStates, rejected_image_states, response_states

#: The responses of a batch in the order in which they go through the output head: those with a
#: divergence first, and of them first the one whose divergence is always trained.
_ORDER = ("rejected", "chosen", "rejected_image")


class Policy(nn.Module):
    """A model under its objective."""

    def __init__(
        self,
        model: Any,
        objective: ObjectiveConfig,
        *,
        prefix_sharing: bool = False,
        logits_chunk: int = CHUNK,
    ) -> None:
        """Wrap a model.

        Args:
            model: the model that is trained, with its adapters.
            objective: what it is trained to.
            prefix_sharing: whether chosen and rejected are computed behind one prompt.
            logits_chunk: positions whose logits are held together.
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
    ) -> BatchObjective:
        """Return the objective of each pair.

        Args:
            batch: on the model's device.
            reference: what the reference says of the same batch.
            reference_head: `ReferenceSource.head`; None: this model's own.
        """
        responses = _responses(batch)
        hidden = self._hidden(batch)
        of_reference, trained = None, 0
        if self.objective.needs_divergence:
            known = {"rejected": reference.rejected.hidden, "chosen": reference.chosen.hidden}
            of_reference = torch.cat(
                [
                    value[responses[kind].places]
                    for kind, value in known.items()
                    if value is not None
                ]
            )
            both = self.objective.trains_chosen_divergence
            trained = sum(len(hidden[kind]) for kind in known if both or kind == "rejected")
        scores = head_scores(
            torch.cat(list(hidden.values())),
            torch.cat([of.ids[of.places] for of in responses.values()]),
            self.head,
            reference_hidden=of_reference,
            reference_head=reference_head,
            kl_gradients=trained,
            chunk=self.logits_chunk,
        )
        logps = _by_kind(scores.logps, responses)
        kl = {} if scores.kl is None else _by_kind(scores.kl, responses)
        scored = {
            kind: ResponseScores(
                policy_logps=logps[kind],
                reference_logps=getattr(reference, kind).logps,
                mask=of.mask,
                changed=of.changed,
                kl=kl.get(kind),
            )
            for kind, of in responses.items()
        }
        return batch_objective(
            self.objective,
            chosen=scored["chosen"],
            rejected=scored["rejected"],
            rejected_image=scored.get("rejected_image"),
        )

    @torch.no_grad()
    def reference_scores(self, batch: PairBatch) -> ReferenceScores:
        """Return what a training needs of a reference, of this model as it is now."""
        responses = _responses(batch)
        hidden = self._hidden(batch)
        scores = head_scores(
            torch.cat(list(hidden.values())),
            torch.cat([of.ids[of.places] for of in responses.values()]),
            self.head,
            chunk=self.logits_chunk,
        )
        kept = ("rejected", "chosen") if self.objective.needs_divergence else ()
        return ReferenceScores(
            **{
                kind: ResponseReference(
                    logps=logps,
                    hidden=spread(hidden[kind], responses[kind]) if kind in kept else None,
                )
                for kind, logps in _by_kind(scores.logps, responses).items()
            }
        )

    @torch.no_grad()
    def rejected_image_reference(self, batch: PairBatch) -> ResponseReference:
        """Return what `reference_scores` says under the rejected image, and compute no more."""
        assert batch.rejected_image is not None
        hidden = rejected_image_states(self.model, batch, prefix_sharing=self.prefix_sharing)
        return ResponseReference(logps=self.logps(hidden, batch.rejected_image))

    @torch.no_grad()
    def logps(self, hidden: Tensor, responses: Responses) -> Tensor:
        """Return log p of each response token, (B, C), from what predicts it, (N, D)."""
        ids = responses.ids[responses.places]
        scores = head_scores(hidden, ids, self.head, chunk=self.logits_chunk)
        return spread(scores.logps, responses)

    def states(self, batch: PairBatch) -> ResponseStates:
        """Return the hidden states that predict a batch's responses."""
        return response_states(self.model, batch, prefix_sharing=self.prefix_sharing)

    @property
    def head(self) -> OutputHead:
        """The output head as it is now; within a forward alone where it is sharded."""
        layer = self.model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)

    def _hidden(self, batch: PairBatch) -> dict[str, Tensor]:
        states = self.states(batch)
        return {kind: getattr(states, kind) for kind in _responses(batch)}


def spread(values: Tensor, responses: Responses) -> Tensor:
    """Return values of responses' tokens in their places, (N, …) to (B, C, …); else 0."""
    whole = values.new_zeros((*responses.mask.shape, *values.shape[1:]))
    return whole.index_put(responses.places, values)


def _responses(batch: PairBatch) -> dict[str, Responses]:
    found = {kind: getattr(batch, kind) for kind in _ORDER}
    return {kind: responses for kind, responses in found.items() if responses is not None}


def _by_kind(values: Tensor, responses: dict[str, Responses]) -> dict[str, Tensor]:
    """Return values of the first of all positions as (B, C) of each response that they cover."""
    parted, start = {}, 0
    for kind, of in responses.items():
        length = len(of.places[0])
        if start < len(values):
            parted[kind] = spread(values[start : start + length], of)
        start += length
    return parted
