"""Find training images that a benchmark shows, too: by COCO's number, or by appearance.

Two images look alike if their 64-bit difference hashes (which of two neighbours is brighter, on an
image of 9 × 8) differ in a few bits and small copies of them hardly differ: a scaled or
recompressed copy is found, a cropped or mirrored one is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from chip_core.data.image_files import to_rgb

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.(?:jpg|jpeg|png)$", re.IGNORECASE)
_BITS = 4  # of 64 that may differ
_SIDE = 16  # of the small copy
_APART = 6.0  # largest mean difference of small copies, of 255, for the same picture


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSignature:
    """The features by which an image is compared."""

    bits: int  # its difference hash
    small: np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # (16, 16, 3), 0 to 255


def coco_number(name: str) -> int | None:
    """Return COCO's number of an image from its file name; None if the name is no COCO name."""
    found = _COCO.search(name)
    return int(found[1]) if found else None


def image_signature(image: Image.Image) -> ImageSignature:
    """Compute the features by which an image is compared."""
    image = to_rgb(image)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    bits = int("".join("1" if more else "0" for more in (grey[:, 1:] > grey[:, :-1]).flat), 2)
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    return ImageSignature(bits=bits, small=np.asarray(small, np.float32))


def same_picture(one: ImageSignature, other: ImageSignature) -> bool:
    """Return whether two images are the same picture."""
    if (one.bits ^ other.bits).bit_count() > _BITS:
        return False
    return bool(np.abs(one.small - other.small).mean() <= _APART)


def count_shared(
    training: Iterable[tuple[str, Callable[[], Image.Image | None]]],
    shown: Iterable[tuple[str, Callable[[], Image.Image]]],
) -> list[tuple[str, str]]:
    """Return (training image, benchmark picture) of images that are in both.

    Args:
        training: name and reader of each training image; a reader may return None for a bad one.
        shown: name and reader of each of a benchmark's pictures.
    """
    numbers: dict[int, str] = {}
    kept: list[tuple[str, ImageSignature]] = []
    for name, read in shown:
        number = coco_number(name)
        if number is not None:
            numbers.setdefault(number, name)
        kept.append((name, image_signature(read())))
    hashes = np.array([entry.bits for _, entry in kept], dtype=np.uint64)
    found: dict[str, str] = {}
    for name, read_training in training:
        number = coco_number(name)
        if number in numbers:
            found[name] = numbers[number]
            continue
        image = read_training()
        if image is None or not kept:
            continue
        own = image_signature(image)
        near = np.bitwise_count(hashes ^ np.uint64(own.bits)) <= _BITS
        for place in near.nonzero()[0]:
            if same_picture(own, kept[place][1]):
                found[name] = kept[place][0]
                break
    return list(found.items())
