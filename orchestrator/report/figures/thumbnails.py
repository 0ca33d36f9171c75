"""Make thumbnails of a benchmark's pictures for the page."""

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
_LOSSLESS = 96  # pixels up to which an image is stored unchanged

#: An encoded image: media type and content.
Encoded = tuple[str, bytes]


def item_images(
    side: Side, settings: BenchmarkConfig, places: DataPaths, items: Iterable[str]
) -> dict[str, tuple[Encoded, ...]]:
    """Return the available pictures of items, encoded.

    A missing picture is left out; it does not make a report fail.

    Args:
        side: side of the benchmark.
        settings: settings of the benchmark.
        places: where the benchmark's data are.
        items: ids of the items.
    """
    wanted = set(items)
    found: Sequence[Item] = ()
    with contextlib.suppress(Exception):  # its data are missing, or a user's benchmark raises
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
    """Encode an image: a small one as PNG, else a thumbnail as JPEG."""
    out = io.BytesIO()
    image = to_rgb(image)
    if max(image.size) <= _LOSSLESS:
        image.save(out, "PNG", optimize=True)
        return "image/png", out.getvalue()
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    small.save(out, "JPEG", quality=82)
    return "image/jpeg", out.getvalue()
