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
from chip_core.objectives.head import OutputHead, head_scores
from chip_core.objectives.terms import BatchObjective, ResponseScores
from chip_core.training.reference import ReferenceScores, ResponseReference
from chip_core.training.states import (
    autocast,
    rejected_image_states,
    response_states,
    text_states,
)


class Policy(nn.Module):
    """A model under its objective."""

    def __init__(
        self,
        model: Any,
        objective: ObjectiveConfig,
        *,
        bf16: bool = False,
        prefix_sharing: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: the model that is trained, with its adapters.
            objective: what it is trained to.
            bf16: whether to compute under autocast.
            prefix_sharing: whether chosen and rejected are computed behind one prompt.
        """
        super().__init__()
        self.model = model
        self.objective = objective
        self.bf16 = bf16
        self.prefix_sharing = prefix_sharing

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
        states = response_states(
            self.model, batch, prefix_sharing=self.prefix_sharing, bf16=self.bf16
        )
        head = self.head

        def scores(
            hidden: Tensor, responses: Responses, known: ResponseReference, *, kl: bool
        ) -> ResponseScores:
            of_reference = None
            if kl:
                assert known.hidden is not None, "the divergence needs the reference's states"
                of_reference = known.hidden[responses.mask]
            with autocast(hidden.device, bf16=self.bf16):
                logps, divergence = head_scores(
                    hidden,
                    responses.ids[responses.mask],
                    head,
                    reference_hidden=of_reference,
                    reference_head=reference_head or head,
                )
            return ResponseScores(
                policy_logps=spread(logps, responses.mask),
                reference_logps=known.logps,
                mask=responses.mask,
                changed=responses.changed,
                kl=None if divergence is None else spread(divergence, responses.mask),
            )

        kl = self.objective.needs_divergence
        rejected_image = None
        if batch.rejected_image is not None:
            assert states.rejected_image is not None and reference.rejected_image is not None
            rejected_image = scores(
                states.rejected_image, batch.rejected_image, reference.rejected_image, kl=False
            )
        return batch_objective(
            self.objective,
            chosen=scores(states.chosen, batch.chosen, reference.chosen, kl=kl),
            rejected=scores(states.rejected, batch.rejected, reference.rejected, kl=kl),
            rejected_image=rejected_image,
        )

    @torch.no_grad()
    def reference_scores(self, batch: PairBatch) -> ReferenceScores:
        """Return what a training needs of a reference, of this model as it is now."""
        chosen, rejected = self.text_reference(batch)
        return ReferenceScores(
            chosen=chosen, rejected=rejected, rejected_image=self.rejected_image_reference(batch)
        )

    @torch.no_grad()
    def text_reference(self, batch: PairBatch) -> tuple[ResponseReference, ResponseReference]:
        """Return what `reference_scores` says of (chosen, rejected), and compute no more."""
        chosen, rejected = text_states(
            self.model, batch, prefix_sharing=self.prefix_sharing, bf16=self.bf16
        )
        keep = self.objective.needs_divergence
        return (
            self._reference(chosen, batch.chosen, keep=keep),
            self._reference(rejected, batch.rejected, keep=keep),
        )

    @torch.no_grad()
    def rejected_image_reference(self, batch: PairBatch) -> ResponseReference | None:
        """Return what `reference_scores` says under the rejected image, and compute no more."""
        hidden = rejected_image_states(self.model, batch, bf16=self.bf16)
        if hidden is None:
            return None
        assert batch.rejected_image is not None
        return self._reference(hidden, batch.rejected_image, keep=False)

    @torch.no_grad()
    def logps(self, hidden: Tensor, responses: Responses) -> Tensor:
        """Return log p of each response token, (B, C), from what predicts it, (N, D)."""
        with autocast(hidden.device, bf16=self.bf16):
            logps, _ = head_scores(hidden, responses.ids[responses.mask], self.head)
        return spread(logps, responses.mask)

    def _reference(self, hidden: Tensor, responses: Responses, *, keep: bool) -> ResponseReference:
        return ResponseReference(
            logps=self.logps(hidden, responses),
            hidden=spread(hidden, responses.mask) if keep else None,
        )

    @property
    def head(self) -> OutputHead:
        """The output head as it is now; within a forward alone where it is sharded."""
        layer = self.model.get_output_embeddings()
        return OutputHead(weight=layer.weight, bias=layer.bias)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Return values of a mask's true entries in their places, (N, …) to (B, C, …); else 0."""
    spread = values.new_zeros((*mask.shape, *values.shape[1:]))
    return spread.index_put(mask.nonzero(as_tuple=True), values)
