"""What the released Muffin training does to an image before the model sees it.

A random crop that is resized, a mirror image in half of all cases, and then two operations drawn
from ten, each of which is made in half of all cases. The operations are at level 7 of 10, as
ALBEF's RandomAugment has them. The draws are this package's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from PIL import Image, ImageEnhance, ImageOps

#: Of the image's area, and width over height, of a crop.
_AREA, _ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)
_TRIES = 10

_OPERATIONS, _SHARE = 2, 0.5
_LEVEL = 7 / 10
_FACTOR = 1.8 * _LEVEL + 0.1  # of brightness and sharpness
_SHEAR = 0.3 * _LEVEL  # of a pixel, a pixel
_SHIFT = 10 * _LEVEL  # pixels
_TURN = 30 * _LEVEL  # degrees
_FILL = (128, 128, 128)


def augment_image(image: Image.Image, size: tuple[int, int] | None, seed: int) -> Image.Image:
    """Return an image as a training's draw leaves it.

    Args:
        image: RGB.
        size: width and height that the model's images have; None: they differ, and a crop stays as
            large as it is.
        seed: of this draw alone.
    """
    numbers = Random(seed)
    image = image.crop(_window(image.size, numbers))
    image = image.resize(size or image.size, Image.Resampling.BILINEAR)
    if numbers.random() < 0.5:
        image = ImageOps.mirror(image)
    for _ in range(_OPERATIONS):
        # Drawn whether they are needed or not: a draw says the same of all images.
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
    # Too long or too wide for any: as much of the middle as the aspect lets be.
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


#: By number: what is drawn from. Each is given the image and 1 or -1.
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
