"""Augment training images as the released Muffin training does.

A random crop that is resized, a mirror image in half of all cases, and then two operations drawn
from ten, each of which is applied in half of all cases. The operations are at level 7 of 10, as in
ALBEF's RandomAugment. The random draws are this package's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageEnhance, ImageOps

#: Range of a crop's share of the image's area, and of its width over height.
_AREA, _ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
_TRIES = 10

_OPERATIONS, _SHARE = 2, 0.5
_LEVEL = 7 / 10
_FACTOR = 1.8 * _LEVEL + 0.1  # of brightness and sharpness
_SHEAR = 0.3 * _LEVEL  # pixels per pixel
_SHIFT = 10 * _LEVEL  # pixels
_TURN = 30 * _LEVEL  # degrees
_FILL = (128, 128, 128)


def augment_image(image: Image.Image, size: tuple[int, int] | None, seed: int) -> Image.Image:
    """Return an augmented image.

    Args:
        image: RGB.
        size: width and height of the model's images; None: they vary, and a crop keeps its size.
        seed: of this draw alone.
    """
    numbers = Random(seed)
    image = image.crop(_window(image.size, numbers))
    image = image.resize(size or image.size, Image.Resampling.BILINEAR)
    if numbers.random() < 0.5:
        image = ImageOps.mirror(image)
    for _ in range(_OPERATIONS):
        # Drawn even if unused, so that every image takes the same number of draws.
        operation = OPERATIONS[int(numbers.random() * len(OPERATIONS))]
        made, sign = numbers.random() < _SHARE, 1 if numbers.random() < 0.5 else -1
        if made:
            image = operation(image, sign)
    return image


def _window(size: tuple[int, int], numbers: Random) -> tuple[int, int, int, int]:
    """Return a random crop (left, top, right, bottom)."""
    width, height = size
    for _ in range(_TRIES):
        area = width * height * _between(_AREA, numbers.random())
        ends = (math.log(_ASPECT[0]), math.log(_ASPECT[1]))
        aspect = math.exp(_between(ends, numbers.random()))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        left, top = numbers.random(), numbers.random()
        if 0 < across <= width and 0 < down <= height:
            x, y = int(left * (width - across + 1)), int(top * (height - down + 1))
            return x, y, x + across, y + down
    # Too long or too wide for any crop: as much of the middle as the aspect allows.
    across = min(width, max(1, round(height * _ASPECT[1])))
    down = min(height, max(1, round(width / _ASPECT[0])))
    x, y = (width - across) // 2, (height - down) // 2
    return x, y, x + across, y + down


def _between(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR, fillcolor=_FILL
    )


#: The operations to draw from, by number. Each gets the image and 1 or -1.
OPERATIONS: tuple[Callable[[Image.Image, int], Image.Image], ...] = (
    lambda image, sign: image,
    lambda image, sign: ImageOps.autocontrast(image),
    lambda image, sign: ImageOps.equalize(image),
    lambda image, sign: ImageEnhance.Brightness(image).enhance(_FACTOR),
    lambda image, sign: ImageEnhance.Sharpness(image).enhance(_FACTOR),
    lambda image, sign: _affine(image, 1, sign * _SHEAR, 0, 0, 1, 0),
    lambda image, sign: _affine(image, 1, 0, 0, sign * _SHEAR, 1, 0),
    lambda image, sign: _affine(image, 1, 0, sign * _SHIFT, 0, 1, 0),
    lambda image, sign: _affine(image, 1, 0, 0, 0, 1, sign * _SHIFT),
    lambda image, sign: image.rotate(sign * _TURN, Image.Resampling.BILINEAR, fillcolor=_FILL),
)
