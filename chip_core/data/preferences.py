"""Preference pairs: an image, a prompt, a chosen and a rejected response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from chip_core.config import DataConfig
from chip_core.shapes import captions, world


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One training sample."""

    id: str
    image: Image.Image
    prompt: str
    chosen: str
    rejected: str
    rejected_image: Image.Image | None = None  # where the data set has one


class ShapesPairs(Sequence[PreferencePair]):
    """The embedded world's `train` split, drawn when asked for."""

    def __init__(self, limit: int | None) -> None:
        size = world.SPLIT_SIZES["train"]
        self._length = size if limit is None else min(limit, size)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> PreferencePair:  # type: ignore[override]
        if not 0 <= index < self._length:
            raise IndexError(index)
        pair = captions.preference_pair("train", index)
        return PreferencePair(
            id=pair.id,
            image=pair.image,
            prompt=pair.question,
            chosen=pair.chosen,
            rejected=pair.rejected,
        )

    def __iter__(self) -> Iterator[PreferencePair]:
        return (self[index] for index in range(len(self)))


def load_pairs(config: DataConfig) -> Sequence[PreferencePair]:
    """Return the pairs that a configuration names."""
    return ShapesPairs(config.limit)
