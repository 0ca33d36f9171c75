"""Compute the rows of a reference cache: the reference's outputs for images and responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import Pairs
from chip_core.data.special_tokens import SpecialTokens
from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.models.tower import is_frozen, tower_features
from chip_core.objectives.parts import VIEWS
from chip_core.objectives.terms import ResponseReference
from chip_core.reference_cache.shards import CacheRow
from chip_core.reference_cache.size import bytes_a_token
from chip_core.reference_cache.spec import CacheSpec
from chip_core.training.policy import Policy
from chip_core.utils.errors import TrialError

_SAMPLE = 8  # images from which the others' size is estimated


class ImageFeatures:
    """Compute the rows of a pass over images."""

    def __init__(
        self, spec: CacheSpec, config: TrialConfig, model: Any, encoder: PairEncoder
    ) -> None:
        """Prepare a pass.

        Args:
            spec: the pass.
            config: the configuration that it is computed with.
            model: the reference, on its device.
            encoder: encodes a batch of one sample.

        Raises:
            TrialError: something within the tower is trained.
        """
        if not is_frozen(model, config):
            raise TrialError(
                "the projector, which is trained, lies within this family's vision encoder: set "
                "projector: frozen, or engine.feature_cache: off"
            )
        self._spec, self._model, self._encoder = spec, model, encoder
        self._device = next(model.parameters()).device
        self.facts: dict[str, Any] = {}

    def bytes(self, places: Sequence[int]) -> int:
        """Return the approximate bytes of samples, because images differ in size."""
        some = places[:: max(1, len(places) // _SAMPLE)]
        sizes = [value.nbytes for place in some for value in self._alone(place).values()]
        return round(sum(sizes) / max(1, len(some)) * len(places))

    def most_bytes(self, places: Sequence[int], longest: int) -> int:
        """Return `bytes`, which only reads a few images."""
        return self.bytes(places)

    def rows(self, batch: PairBatch) -> Iterator[CacheRow]:
        """Yield the tower's features of each pair of a batch.

        They are computed together if each pair is one image of the same size, otherwise separately:
        which tiles or patches of a batch belong to which image depends on the family.
        """
        pixels = self._prompts(batch).images["pixel_values"]
        if pixels.ndim != 4 or len(pixels) != len(batch):
            yield from map(self._alone, batch.indices)
            return
        together = self._computed(self._prompts(batch))
        split = {name: values.chunk(len(batch)) for name, values in together.items()}
        for row in range(len(batch)):
            yield {name: values[row] for name, values in split.items()}

    def _alone(self, place: int) -> dict[str, Tensor]:
        batch = self._encoder.batch([place], self._spec.epoch or 0)
        return self._computed(self._prompts(batch.to(self._device)))

    def _prompts(self, batch: PairBatch) -> Prompts:
        if not self._spec.of_rejected_image:
            return batch.prompts
        assert batch.rejected_image_prompts is not None
        return batch.rejected_image_prompts

    def _computed(self, prompts: Prompts) -> dict[str, Tensor]:
        """Return the columns of some images, concatenated."""
        features = tower_features(self._model, prompts.images)
        return {column(field): value.cpu() for field, value in features.items()}


def column(field: str) -> str:
    """Return the column of a field of the features, which is a group of its own."""
    return f"{field}.values"


def field_of(column: str) -> str:
    """Return the field of a column."""
    return column.removesuffix(".values")


_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


class ResponseLogps:
    """Compute the rows of a pass over responses."""

    def __init__(self, spec: CacheSpec, policy: Policy, processor: Any, pairs: Pairs) -> None:
        """Prepare a pass.

        Args:
            spec: the pass.
            policy: the reference, as an untrained policy.
            processor: its processor.
            pairs: all pairs.
        """
        self._spec, self._policy, self._pairs = spec, policy, pairs
        self._marks = SpecialTokens(processor)
        #: Facts for the manifest: whether prefixes were shared, and by how much rounding to bf16
        #: moves a token's log-probability in the first batch.
        self.facts: dict[str, Any] = {}

    def bytes(self, places: Sequence[int]) -> int:
        """Return the bytes of samples without cutting responses."""
        tokens = 0
        for start in range(0, len(places), 1000):
            these = places[start : start + 1000]
            texts = [text for place in these for text in self._texts(place)]
            ids = [self._marks.ids(text) for text in texts]
            tokens += sum(map(len, ids)) + len(ids)  # with an end token each
        return tokens * bytes_a_token(self._spec, self._policy.head.weight.shape[1])

    def most_bytes(self, places: Sequence[int], longest: int) -> int:
        """Return an upper bound of the samples' bytes, without reading them.

        Args:
            places: the samples.
            longest: tokens that a sequence has at most; responses are cut to it.
        """
        tokens = len({VIEWS[view][1] for view in self._spec.reads}) * len(places) * longest
        return tokens * bytes_a_token(self._spec, self._policy.head.weight.shape[1])

    def _texts(self, place: int) -> list[str]:
        """Return the responses of a pair that the pass covers."""
        kinds = {VIEWS[view][1] for view in self._spec.reads}
        texts = dict(zip(("chosen", "rejected"), self._pairs.response_texts(place), strict=True))
        if "other" in kinds:
            texts["other"] = self._pairs.third_response(place) or ""
        return [text for kind, text in texts.items() if kind in kinds]

    def rows(self, batch: PairBatch) -> Iterator[CacheRow]:
        """Yield the reference's scores of each pair of a batch."""
        said = self._said(batch)
        if self._spec.hidden == "bf16" and "rounding" not in self.facts:
            self.facts["rounding"] = self._rounding(said)
        columns = [
            (f"{group}.{name}", values)
            for group, responses, reference in said
            for name, values in self._columns(responses, reference).items()
        ]
        for row in range(len(batch)):
            yield {name: values[row] for name, values in columns}

    def _said(self, batch: PairBatch) -> list[tuple[str, Responses, ResponseReference]]:
        """Return the reference's scores of a batch, by group of columns."""
        said = self._policy.reference_scores(batch, self._spec.reads).views
        if self._spec.kind == "text":
            return [(view, batch.responses[view], said[view]) for view in ("chosen", "rejected")]
        (view,) = self._spec.reads
        return [("chosen", batch.responses[view], said[view])]

    def _rounding(self, said: list[tuple[str, Responses, ResponseReference]]) -> float:
        """Return the largest change of a log-probability from rounding the hidden states."""
        furthest = 0.0
        for _, responses, reference in said:
            assert reference.hidden is not None and reference.logps is not None
            rounded = reference.hidden[responses.mask].bfloat16()
            gap = (self._policy.logps(rounded, responses) - reference.logps)[responses.mask]
            furthest = max(furthest, float(gap.abs().max()))
        return furthest

    def _columns(
        self, responses: Responses, reference: ResponseReference
    ) -> dict[str, list[Tensor]]:
        """Return each column's rows, on the CPU, without padding."""
        values = getattr(reference, self._spec.identity.get("quantity", "logps"))
        columns = {"ids": responses.ids.int(), "logps": values.float()}
        if self._spec.hidden is not None:
            assert reference.hidden is not None
            columns["hidden"] = reference.hidden.to(_DTYPE[self._spec.hidden])
        mask = responses.mask.cpu()
        return {
            name: [row[kept] for row, kept in zip(values.cpu(), mask, strict=True)]
            for name, values in columns.items()
        }
