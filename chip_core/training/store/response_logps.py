"""What a pass says of responses: their tokens' log-probabilities, and what predicts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.data.marks import Marks
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch, Responses
from chip_core.training.policy import Policy
from chip_core.training.reference import ResponseReference
from chip_core.training.store.passes import ReferencePass
from chip_core.training.store.shards import Row
from chip_core.training.store.size import bytes_a_token

_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ResponseLogps:
    """Computes the rows of a pass over responses."""

    def __init__(self, one: ReferencePass, policy: Policy, processor: Any, pairs: Pairs) -> None:
        """Make ready.

        Args:
            one: the pass.
            policy: the reference, as a policy that was never trained.
            processor: its processor.
            pairs: all pairs.
        """
        self._one, self._policy, self._pairs = one, policy, pairs
        self._marks = Marks(processor)
        #: What is to be told of it: whether prefixes were shared, and by how much rounding to bf16
        #: moves a token's log-probability in the first batch.
        self.facts: dict[str, Any] = {}

    def bytes(self, places: Sequence[int]) -> int:
        """Return the bytes of samples whose responses are not cut."""
        sides = 2 if self._one.kind == "text" else 1
        tokens = 0
        for start in range(0, len(places), 1000):
            these = places[start : start + 1000]
            texts = [text for place in these for text in self._pairs.responses(place)[:sides]]
            ids = [self._marks.ids(text) for text in texts]
            tokens += sum(map(len, ids)) + len(ids)  # each ends with one more
        return tokens * bytes_a_token(self._one, self._policy.head.weight.shape[1])

    def rows(self, batch: PairBatch) -> Iterator[Row]:
        """Yield what the reference says of each pair of a batch."""
        said = self._said(batch)
        if self._one.hidden == "bf16" and "rounding" not in self.facts:
            self.facts["rounding"] = self._rounding(said)
        columns = [
            (f"{group}.{name}", values)
            for group, responses, reference in said
            for name, values in self._columns(responses, reference).items()
        ]
        for row in range(len(batch)):
            yield {name: values[row] for name, values in columns}

    def _said(self, batch: PairBatch) -> list[tuple[str, Responses, ResponseReference]]:
        """Return what the reference says of a batch, by group of columns."""
        if self._one.kind == "text":
            scores = self._policy.reference_scores(batch.text)
            return [
                ("chosen", batch.chosen, scores.chosen),
                ("rejected", batch.rejected, scores.rejected),
            ]
        assert batch.rejected_image is not None
        said = self._policy.rejected_image_reference(batch)
        return [("chosen", batch.rejected_image, said)]

    def _rounding(self, said: list[tuple[str, Responses, ResponseReference]]) -> float:
        """Return by how much rounding the hidden states moves a log-probability at most."""
        furthest = 0.0
        for _, responses, reference in said:
            assert reference.hidden is not None
            rounded = reference.hidden[responses.mask].bfloat16()
            gap = (self._policy.logps(rounded, responses) - reference.logps)[responses.mask]
            furthest = max(furthest, float(gap.abs().max()))
        return furthest

    def _columns(
        self, responses: Responses, reference: ResponseReference
    ) -> dict[str, list[Tensor]]:
        """Return each column's rows, on the CPU, without padding."""
        columns = {"ids": responses.ids.int(), "logps": reference.logps.float()}
        if self._one.hidden is not None:
            assert reference.hidden is not None
            columns["hidden"] = reference.hidden.to(_DTYPE[self._one.hidden])
        mask = responses.mask.cpu()
        return {
            name: [row[kept] for row, kept in zip(values.cpu(), mask, strict=True)]
            for name, values in columns.items()
        }
