"""The output of a frozen vision tower, read from stores in place of computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from chip_core.data.tensors import PairBatch, Prompts
from chip_core.training.store.image_features import field_of
from chip_core.training.store.shards import Store


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Gives batches what stores have of their images; the rest is computed."""

    images: Store | None
    rejected_images: Mapping[int | None, Store]  # by epoch; None: of all epochs

    @property
    def how(self) -> Literal["stored", "computed"]:
        """Whether there is anything to give."""
        return "stored" if self.images is not None or self.rejected_images else "computed"

    def attached(self, batch: PairBatch) -> PairBatch:
        """Return a batch, on the CPU, with the features of its images."""
        if self.images is not None:
            batch = replace(batch, prompts=_with(self.images, batch.places, batch.prompts))
        of_epoch = None if None in self.rejected_images else batch.epoch
        store, prompts = self.rejected_images.get(of_epoch), batch.rejected_image_prompts
        if store is not None and prompts is not None:
            batch = replace(batch, rejected_image_prompts=_with(store, batch.places, prompts))
        return batch


def _with(store: Store, places: tuple[int, ...], prompts: Prompts) -> Prompts:
    features = {field_of(name): store.rows(places, name) for name in store.columns}
    return replace(prompts, features=features)
