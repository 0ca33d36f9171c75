"""What a pass says of images: what is read of a frozen vision tower's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from chip_core.config import TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import Prompts
from chip_core.errors import TrialError
from chip_core.models.tower import is_frozen, tower_features
from chip_core.objectives.config import ObjectiveConfig
from chip_core.training.states import autocast
from chip_core.training.store.passes import ReferencePass
from chip_core.training.store.shards import Row

_SAMPLE = 8  # images by which the others' size is told


class OfImages:
    """Computes the rows of a pass over images."""

    def __init__(
        self, one: ReferencePass, config: TrialConfig, model: Any, processor: Any, pairs: Pairs
    ) -> None:
        """Make ready.

        Args:
            one: the pass.
            config: a trial that has it.
            model: the reference, on its device.
            processor: its processor.
            pairs: all pairs.

        Raises:
            TrialError: something within the tower is trained.
        """
        if not is_frozen(model, config):
            raise TrialError(
                "the projector, which is trained, lies within this family's vision encoder: set "
                "projector: frozen, or engine.feature_cache: off"
            )
        self._one, self._model, self._bf16 = one, model, config.model.dtype == "bf16"
        terms = ("visual",) if one.of_rejected_image else ("response",)
        config = config.model_copy(update={"objective": ObjectiveConfig(terms=terms)})
        self._encoder = PairEncoder(processor, config, pairs)
        self.facts: dict[str, Any] = {}

    def bytes(self, places: Sequence[int]) -> int:
        """Return about the bytes of samples: images differ in size."""
        some = places[:: max(1, len(places) // _SAMPLE)]
        sizes = [value.nbytes for place in some for value in self._row(place).values()]
        return round(sum(sizes) / max(1, len(some)) * len(places))

    def ready(self) -> AbstractContextManager[None]:
        """There is nothing to make ready."""
        return nullcontext()

    def rows(self, places: Sequence[int]) -> Iterator[Row]:
        """Yield what the tower says of each of some samples, each computed alone.

        Alone, because which of a batch's tiles or patches are whose is the family's affair.
        """
        return map(self._row, places)

    def _row(self, place: int) -> dict[str, Tensor]:
        batch = self._encoder.batch([place], self._one.epoch or 0)
        prompts: Prompts | None = batch.prompts
        if self._one.of_rejected_image:
            prompts = batch.rejected_image_prompts
        assert prompts is not None
        device = next(self._model.parameters()).device
        with autocast(device, bf16=self._bf16):
            features = tower_features(self._model, prompts.to(device).images)
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
