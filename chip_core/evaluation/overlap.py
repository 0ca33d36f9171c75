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

_COCO_NAME = re.compile(
    r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.(?:jpg|jpeg|png)$", re.IGNORECASE
)
_MAX_DIFFERENT_BITS = 4  # of 64 that may differ
_THUMBNAIL_SIZE = 16  # of the small copy
_MAX_MEAN_DIFFERENCE = 6.0  # largest mean difference of small copies, of 255, for the same picture


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSignature:
    """The features by which an image is compared."""

    bits: int  # its difference hash
    small: np.ndarray[tuple[int, ...], np.dtype[np.float32]]  # (16, 16, 3), 0 to 255


def parse_coco_number(name: str) -> int | None:
    """Return COCO's number of an image from its file name; None if the name is no COCO name."""
    match = _COCO_NAME.search(name)
    return int(match[1]) if match else None


def compute_signature(image: Image.Image) -> ImageSignature:
    """Compute the features by which an image is compared."""
    image = to_rgb(image)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    bits = int(
        "".join("1" if is_brighter else "0" for is_brighter in (grey[:, 1:] > grey[:, :-1]).flat), 2
    )
    small = image.resize((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BILINEAR)
    return ImageSignature(bits=bits, small=np.asarray(small, np.float32))


def is_same_picture(first: ImageSignature, second: ImageSignature) -> bool:
    """Return whether two images are the same picture."""
    if (first.bits ^ second.bits).bit_count() > _MAX_DIFFERENT_BITS:
        return False
    return bool(np.abs(first.small - second.small).mean() <= _MAX_MEAN_DIFFERENCE)


def find_shared_images(
    training: Iterable[tuple[str, Callable[[], Image.Image | None]]],
    pictures: Iterable[tuple[str, Callable[[], Image.Image]]],
) -> list[tuple[str, str]]:
    """Return (training image, benchmark picture) of images that are in both.

    Args:
        training: name and reader of each training image; a reader may return None for a bad one.
        pictures: name and reader of each of a benchmark's pictures.
    """
    numbers: dict[int, str] = {}
    signatures: list[tuple[str, ImageSignature]] = []
    for name, read in pictures:
        number = parse_coco_number(name)
        if number is not None:
            numbers.setdefault(number, name)
        signatures.append((name, compute_signature(read())))
    hashes = np.array([entry.bits for _, entry in signatures], dtype=np.uint64)
    shared: dict[str, str] = {}
    for name, read_training in training:
        number = parse_coco_number(name)
        if number in numbers:
            shared[name] = numbers[number]
            continue
        image = read_training()
        if image is None or not signatures:
            continue
        signature = compute_signature(image)
        candidates = np.bitwise_count(hashes ^ np.uint64(signature.bits)) <= _MAX_DIFFERENT_BITS
        for index in candidates.nonzero()[0]:
            if is_same_picture(signature, signatures[index][1]):
                shared[name] = signatures[index][0]
                break
    return list(shared.items())
