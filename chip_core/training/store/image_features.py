"""What a pass says of images: what is read of a frozen vision tower's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.tensors import PairBatch, Prompts
from chip_core.errors import TrialError
from chip_core.models.tower import is_frozen, tower_features
from chip_core.training.states import autocast
from chip_core.training.store.passes import ReferencePass
from chip_core.training.store.shards import Row

_SAMPLE = 8  # images by which the others' size is told


class ImageFeatures:
    """Computes the rows of a pass over images."""

    def __init__(
        self, one: ReferencePass, config: TrialConfig, model: Any, encoder: PairEncoder
    ) -> None:
        """Make ready.

        Args:
            one: the pass.
            config: that it is made with.
            model: the reference, on its device.
            encoder: makes a batch of a sample alone.

        Raises:
            TrialError: something within the tower is trained.
        """
        if not is_frozen(model, config):
            raise TrialError(
                "the projector, which is trained, lies within this family's vision encoder: set "
                "projector: frozen, or engine.feature_cache: off"
            )
        self._one, self._model, self._encoder = one, model, encoder
        self._bf16 = config.model.dtype == "bf16"
        self._device = next(model.parameters()).device
        self.facts: dict[str, Any] = {}

    def bytes(self, places: Sequence[int]) -> int:
        """Return about the bytes of samples: images differ in size."""
        some = places[:: max(1, len(places) // _SAMPLE)]
        sizes = [value.nbytes for place in some for value in self._alone(place).values()]
        return round(sum(sizes) / max(1, len(some)) * len(places))

    def rows(self, batch: PairBatch) -> Iterator[Row]:
        """Yield what the tower says of each pair of a batch.

        Computed together where each pair is one image of one size. Else alone: which of a batch's
        tiles or patches are whose is the family's affair.
        """
        pixels = self._prompts(batch).images["pixel_values"]
        if pixels.ndim != 4 or len(pixels) != len(batch):
            yield from map(self._alone, batch.places)
            return
        together = self._computed(self._prompts(batch))
        split = {name: values.chunk(len(batch)) for name, values in together.items()}
        for row in range(len(batch)):
            yield {name: values[row] for name, values in split.items()}

    def _alone(self, place: int) -> dict[str, Tensor]:
        batch = self._encoder.batch([place], self._one.epoch or 0)
        return self._computed(self._prompts(batch.to(self._device)))

    def _prompts(self, batch: PairBatch) -> Prompts:
        if not self._one.of_rejected_image:
            return batch.prompts
        assert batch.rejected_image_prompts is not None
        return batch.rejected_image_prompts

    def _computed(self, prompts: Prompts) -> dict[str, Tensor]:
        """Return the columns of some images, one image after the other."""
        with autocast(self._device, bf16=self._bf16):
            features = tower_features(self._model, prompts.images)
        # In bf16 the projector's first product rounds to bf16 anyway.
        return {
            column(field): (value.to(torch.bfloat16) if self._bf16 else value).cpu()
            for field, value in features.items()
        }


def column(field: str) -> str:
    """Return the column of a field of the features: a group of its own."""
    return f"{field}.values"


def field_of(column: str) -> str:
    """Return the field that a column is of."""
    return column.removesuffix(".values")
