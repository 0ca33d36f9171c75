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

_MAX_SIDE = 240  # pixels of the longest side
_LOSSLESS_SIDE = 96  # pixels up to which an image is stored unchanged

#: An encoded image: media type and content.
EncodedImage = tuple[str, bytes]


def encode_item_images(
    side: Side, settings: BenchmarkConfig, data_paths: DataPaths, items: Iterable[str]
) -> dict[str, tuple[EncodedImage, ...]]:
    """Return the available pictures of items, encoded.

    A missing picture is left out; it does not make a report fail.

    Args:
        side: side of the benchmark.
        settings: settings of the benchmark.
        data_paths: where the benchmark's data are.
        items: ids of the items.
    """
    item_ids = set(items)
    selected: Sequence[Item] = ()
    with contextlib.suppress(Exception):  # its data are missing, or a user's benchmark raises
        selected, _ = select_items(side, settings, find_benchmark(settings.name), data_paths)
    return {
        item.id: tuple(encoded for picture in item.pictures for encoded in _encode_picture(picture))
        for item in selected
        if item.id in item_ids
    }


def _encode_picture(picture: Picture) -> Iterator[EncodedImage]:
    with contextlib.suppress(Exception):  # as above
        yield encode_image(picture.read())


def encode_image(
    image: Image.Image,
    *,
    lossless_side: int = _LOSSLESS_SIDE,
    max_side: int = _MAX_SIDE,
    quality: int = 82,
) -> EncodedImage:
    """Encode an image: a small one as PNG, else a thumbnail as JPEG.

    Args:
        image: the image.
        lossless_side: pixels of the longest side up to which the image is stored unchanged.
        max_side: pixels of a thumbnail's longest side.
        quality: quality of the JPEG.
    """
    buffer = io.BytesIO()
    image = to_rgb(image)
    if max(image.size) <= lossless_side:
        image.save(buffer, "PNG", optimize=True)
        return "image/png", buffer.getvalue()
    thumbnail = image.copy()
    thumbnail.thumbnail((max_side, max_side))
    thumbnail.save(buffer, "JPEG", quality=quality)
    return "image/jpeg", buffer.getvalue()
