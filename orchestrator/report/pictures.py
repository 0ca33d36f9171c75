"""A benchmark item's image, made small for a page."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable

from PIL import Image

from chip_core.evaluation.task import BENCHMARKS, Illustrated

_SIDE = 240  # pixels of the longest side
_LOSSLESS = 96  # pixels up to which an image is kept as it is

#: An image as a page holds it: its media type and its content.
Encoded = tuple[str, bytes]


def item_images(benchmark: str, items: Iterable[str]) -> dict[str, Encoded]:
    """Return the images of items, those that can be had.

    A missing image leaves a table without a picture; it does not fail a report.
    """
    known: object = BENCHMARKS[benchmark]
    images: dict[str, Encoded] = {}
    if isinstance(known, Illustrated):
        for item in items:
            with contextlib.suppress(ValueError, OSError):
                images[item] = encoded(known.image(item))
    return images


def encoded(image: Image.Image) -> Encoded:
    """Return an image as a page holds it: PNG where it is small, else a small JPEG."""
    out = io.BytesIO()
    if max(image.size) <= _LOSSLESS:
        image.convert("RGB").save(out, "PNG", optimize=True)
        return "image/png", out.getvalue()
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    small.save(out, "JPEG", quality=82)
    return "image/jpeg", out.getvalue()
