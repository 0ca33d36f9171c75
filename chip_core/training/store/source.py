"""The reference of a training, read from stores in place of computed.

Shapes: B pairs, C tokens of a response (padded on the right), D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chip_core.data.tensors import PairBatch, Responses
from chip_core.errors import TrialError
from chip_core.objectives.head import OutputHead
from chip_core.training.policy import spread
from chip_core.training.reference import Live, ReferenceScores, ResponseReference
from chip_core.training.store.shards import Store


class StoredReference:
    """Reads what stores have, and has the rest computed."""

    def __init__(
        self,
        *,
        text: Store | None,
        rejected_image: Mapping[int | None, Store],
        head: OutputHead | None,
        hidden: bool,
        live: Live | None,
    ) -> None:
        """Put together a training's reference.

        Args:
            text: the store of the responses under the image; None: they are computed.
            rejected_image: the stores under the rejected image, by epoch; None: of all epochs.
                What is not here is computed.
            head: what turns the hidden states into logits; None: the policy's own, frozen.
            hidden: whether hidden states are read.
            live: computes what no store has.
        """
        self._text, self._rejected_image = text, rejected_image
        self._head, self._hidden, self._live = head, hidden, live

    @property
    def head(self) -> OutputHead | None:
        """What turns its hidden states into logits; None: the policy's own, which is frozen."""
        return self._head

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return what the reference says of a batch, on the batch's device, without a graph.

        Raises:
            TrialError: a store is of other responses than the batch's.
        """
        chosen, rejected = self._of_text(batch)
        return ReferenceScores(
            chosen=chosen, rejected=rejected, rejected_image=self._of_rejected_image(batch)
        )

    def _of_text(self, batch: PairBatch) -> tuple[ResponseReference, ResponseReference]:
        if self._text is None:
            assert self._live is not None
            scores = self._live.scores(batch.text)
            return scores.chosen, scores.rejected
        return (
            _read(self._text, "chosen", batch.places, batch.chosen, hidden=self._hidden),
            _read(self._text, "rejected", batch.places, batch.rejected, hidden=self._hidden),
        )

    def _of_rejected_image(self, batch: PairBatch) -> ResponseReference | None:
        if batch.rejected_image is None:
            return None
        of_epoch = None if None in self._rejected_image else batch.epoch
        if of_epoch not in self._rejected_image:
            assert self._live is not None
            return self._live.rejected_image(batch)
        store = self._rejected_image[of_epoch]
        return _read(store, "chosen", batch.places, batch.rejected_image, hidden=False)


def _read(
    store: Store, group: str, places: tuple[int, ...], responses: Responses, *, hidden: bool
) -> ResponseReference:
    """Return what a store says of one response a pair."""

    def column(name: str) -> Tensor:
        return store.rows(places, f"{group}.{name}").to(responses.ids.device)

    if not torch.equal(column("ids"), responses.ids[responses.mask].int()):
        raise TrialError(
            f"the reference pass in {store.folder} is of other {group} responses than this "
            f"trial's (among the pairs {', '.join(map(str, places))}): the data changed while it "
            "was trained on; remove that folder and run again"
        )
    return ResponseReference(
        logps=spread(column("logps"), responses.mask),
        hidden=spread(column("hidden"), responses.mask) if hidden else None,
    )
