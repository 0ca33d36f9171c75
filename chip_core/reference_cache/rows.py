"""Compute the rows of a reference cache: the reference's outputs for images and responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.encodings import SpecialTokens
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch, Prompts, Responses
from chip_core.models.parts import compute_tower_features, is_tower_frozen
from chip_core.objectives.parts import VIEWS
from chip_core.objectives.scores import ResponseReference
from chip_core.reference_cache.shards import CacheRow
from chip_core.reference_cache.size import count_bytes_per_token
from chip_core.reference_cache.spec import CacheSpec
from chip_core.training.policy import Policy
from chip_core.utils.errors import TrialError

_SAMPLE_IMAGES = 8  # images from which the others' size is estimated


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
        if not is_tower_frozen(model, config):
            raise TrialError(
                "the projector is trained but is within this family's vision encoder: set "
                "projector: frozen, or engine.feature_cache: off"
            )
        self._spec, self._model, self._encoder = spec, model, encoder
        self._device = next(model.parameters()).device
        self.facts: dict[str, Any] = {}

    def estimate_bytes(self, indices: Sequence[int]) -> int:
        """Return the approximate bytes of samples, because images differ in size."""
        sample = indices[:: max(1, len(indices) // _SAMPLE_IMAGES)]
        sizes = [value.nbytes for index in sample for value in self._compute_single(index).values()]
        return round(sum(sizes) / max(1, len(sample)) * len(indices))

    def max_bytes(self, indices: Sequence[int], max_length: int) -> int:
        """Return `estimate_bytes`, which only reads a few images."""
        return self.estimate_bytes(indices)

    def rows(self, batch: PairBatch) -> Iterator[CacheRow]:
        """Yield the tower's features of each pair of a batch.

        They are computed together if each pair is one image of the same size, otherwise separately:
        which tiles or patches of a batch belong to which image depends on the family.
        """
        pixels = self._select_prompts(batch).images["pixel_values"]
        if pixels.ndim != 4 or len(pixels) != len(batch):
            yield from map(self._compute_single, batch.indices)
            return
        features = self._compute_columns(self._select_prompts(batch))
        split = {name: values.chunk(len(batch)) for name, values in features.items()}
        for row in range(len(batch)):
            yield {name: values[row] for name, values in split.items()}

    def _compute_single(self, index: int) -> dict[str, Tensor]:
        batch = self._encoder.encode_batch([index], self._spec.epoch or 0)
        return self._compute_columns(self._select_prompts(batch.to(self._device)))

    def _select_prompts(self, batch: PairBatch) -> Prompts:
        if not self._spec.is_rejected_image:
            return batch.prompts
        assert batch.rejected_image_prompts is not None
        return batch.rejected_image_prompts

    def _compute_columns(self, prompts: Prompts) -> dict[str, Tensor]:
        """Return the columns of some images, concatenated."""
        features = compute_tower_features(self._model, prompts.images)
        return {feature_column(field): value.cpu() for field, value in features.items()}


def feature_column(field: str) -> str:
    """Return the column of a field of the features, which is a group of its own."""
    return f"{field}.values"


def column_field(column: str) -> str:
    """Return the field of a column."""
    return column.removesuffix(".values")


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        self._special_tokens = SpecialTokens(processor)
        #: Facts for the manifest: whether prefixes were shared, and by how much rounding to bf16
        #: moves a token's log-probability in the first batch.
        self.facts: dict[str, Any] = {}

    def estimate_bytes(self, indices: Sequence[int]) -> int:
        """Return the bytes of samples without cutting responses."""
        tokens = 0
        for start in range(0, len(indices), 1000):
            part = indices[start : start + 1000]
            texts = [text for index in part for text in self._response_texts(index)]
            ids = [self._special_tokens.tokenize(text) for text in texts]
            tokens += sum(map(len, ids)) + len(ids)  # with an end token each
        return tokens * count_bytes_per_token(self._spec, self._policy.head.weight.shape[1])

    def max_bytes(self, indices: Sequence[int], max_length: int) -> int:
        """Return an upper bound of the samples' bytes, without reading them.

        Args:
            indices: the samples.
            max_length: tokens that a sequence has at most; responses are cut to it.
        """
        tokens = len({VIEWS[view][1] for view in self._spec.reads}) * len(indices) * max_length
        return tokens * count_bytes_per_token(self._spec, self._policy.head.weight.shape[1])

    def _response_texts(self, index: int) -> list[str]:
        """Return the responses of a pair that the pass covers."""
        kinds = {VIEWS[view][1] for view in self._spec.reads}
        texts = dict(zip(("chosen", "rejected"), self._pairs.response_texts(index), strict=True))
        if "other" in kinds:
            texts["other"] = self._pairs.third_response(index) or ""
        return [text for kind, text in texts.items() if kind in kinds]

    def rows(self, batch: PairBatch) -> Iterator[CacheRow]:
        """Yield the reference's scores of each pair of a batch."""
        groups = self._score_groups(batch)
        if self._spec.hidden == "bf16" and "rounding" not in self.facts:
            self.facts["rounding"] = self._rounding_error(groups)
        columns = [
            (f"{group}.{name}", values)
            for group, responses, reference in groups
            for name, values in self._columns(responses, reference).items()
        ]
        for row in range(len(batch)):
            yield {name: values[row] for name, values in columns}

    def _score_groups(self, batch: PairBatch) -> list[tuple[str, Responses, ResponseReference]]:
        """Return the reference's scores of a batch, by group of columns."""
        views = self._policy.reference_scores(batch, self._spec.reads).views
        if self._spec.kind == "text":
            return [(view, batch.responses[view], views[view]) for view in ("chosen", "rejected")]
        (view,) = self._spec.reads
        return [("chosen", batch.responses[view], views[view])]

    def _rounding_error(self, groups: list[tuple[str, Responses, ResponseReference]]) -> float:
        """Return the largest change of a log-probability from rounding the hidden states."""
        largest = 0.0
        for _, responses, reference in groups:
            assert reference.hidden is not None and reference.logps is not None
            rounded = reference.hidden[responses.mask].bfloat16()
            difference = (self._policy.compute_logps(rounded, responses) - reference.logps)[
                responses.mask
            ]
            largest = max(largest, float(difference.abs().max()))
        return largest

    def _columns(
        self, responses: Responses, reference: ResponseReference
    ) -> dict[str, list[Tensor]]:
        """Return each column's rows, on the CPU, without padding."""
        values = getattr(reference, self._spec.identity.get("quantity", "logps"))
        columns = {"ids": responses.ids.int(), "logps": values.float()}
        if self._spec.hidden is not None:
            assert reference.hidden is not None
            columns["hidden"] = reference.hidden.to(_DTYPES[self._spec.hidden])
        mask = responses.mask.cpu()
        return {
            name: [row[is_token] for row, is_token in zip(values.cpu(), mask, strict=True)]
            for name, values in columns.items()
        }
