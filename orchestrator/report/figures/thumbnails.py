"""Shrink a benchmark item's pictures for a page."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.data.image_files import to_rgb
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.task import Item, Picture, Side

_SIDE = 240  # pixels of the longest side
_LOSSLESS = 96  # pixels up to which an image is kept as it is

#: An image as a page holds it: its media type and its content.
Encoded = tuple[str, bytes]


def item_images(
    side: Side, settings: BenchmarkConfig, places: DataPaths, items: Iterable[str]
) -> dict[str, tuple[Encoded, ...]]:
    """Return the pictures of items, those that can be had.

    A missing picture leaves a table without it; it does not fail a report.

    Args:
        side: of the benchmark.
        settings: the benchmark's.
        places: where its data lie.
        items: ids of the items that are wanted.
    """
    wanted = set(items)
    found: Sequence[Item] = ()
    with contextlib.suppress(Exception):  # its data are not here, or a user's own raises anything
        found, _ = select_items(side, settings, find_benchmark(settings.name), places)
    return {
        item.id: tuple(made for picture in item.pictures for made in _read(picture))
        for item in found
        if item.id in wanted
    }


def _read(picture: Picture) -> Iterator[Encoded]:
    with contextlib.suppress(Exception):  # as above
        yield encoded(picture.read())


def encoded(image: Image.Image) -> Encoded:
    """Return an image as a page holds it: PNG where it is small, else a small JPEG."""
    out = io.BytesIO()
    image = to_rgb(image)
    if max(image.size) <= _LOSSLESS:
        image.save(out, "PNG", optimize=True)
        return "image/png", out.getvalue()
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    small.save(out, "JPEG", quality=82)
    return "image/jpeg", out.getvalue()
