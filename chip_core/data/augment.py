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
_AREA_RANGE, _ASPECT_RANGE = (0.5, 1.0), (3 / 4, 4 / 3)
_MAX_TRIES = 10

_OPERATION_COUNT, _OPERATION_PROBABILITY = 2, 0.5
_LEVEL = 7 / 10
_FACTOR = 1.8 * _LEVEL + 0.1  # of brightness and sharpness
_SHEAR = 0.3 * _LEVEL  # pixels per pixel
_SHIFT = 10 * _LEVEL  # pixels
_ROTATION = 30 * _LEVEL  # degrees
_FILL = (128, 128, 128)


def augment_image(image: Image.Image, size: tuple[int, int] | None, seed: int) -> Image.Image:
    """Return an augmented image.

    Args:
        image: RGB.
        size: width and height of the model's images; None: they vary, and a crop keeps its size.
        seed: of this draw alone.
    """
    rng = Random(seed)
    image = image.crop(_draw_crop(image.size, rng))
    image = image.resize(size or image.size, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for _ in range(_OPERATION_COUNT):
        # Drawn even if unused, so that every image takes the same number of draws.
        operation = OPERATIONS[int(rng.random() * len(OPERATIONS))]
        is_applied, sign = rng.random() < _OPERATION_PROBABILITY, 1 if rng.random() < 0.5 else -1
        if is_applied:
            image = operation(image, sign)
    return image


def _draw_crop(size: tuple[int, int], rng: Random) -> tuple[int, int, int, int]:
    """Return a random crop (left, top, right, bottom)."""
    width, height = size
    for _ in range(_MAX_TRIES):
        area = width * height * _interpolate(_AREA_RANGE, rng.random())
        bounds = (math.log(_ASPECT_RANGE[0]), math.log(_ASPECT_RANGE[1]))
        aspect = math.exp(_interpolate(bounds, rng.random()))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        left_share, top_share = rng.random(), rng.random()
        if 0 < crop_width <= width and 0 < crop_height <= height:
            x = int(left_share * (width - crop_width + 1))
            y = int(top_share * (height - crop_height + 1))
            return x, y, x + crop_width, y + crop_height
    # Too long or too wide for any crop: as much of the middle as the aspect allows.
    crop_width = min(width, max(1, round(height * _ASPECT_RANGE[1])))
    crop_height = min(height, max(1, round(width / _ASPECT_RANGE[0])))
    x, y = (width - crop_width) // 2, (height - crop_height) // 2
    return x, y, x + crop_width, y + crop_height


def _interpolate(bounds: tuple[float, float], fraction: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * fraction


def _apply_affine(image: Image.Image, *rows: float) -> Image.Image:
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
    lambda image, sign: _apply_affine(image, 1, sign * _SHEAR, 0, 0, 1, 0),
    lambda image, sign: _apply_affine(image, 1, 0, 0, sign * _SHEAR, 1, 0),
    lambda image, sign: _apply_affine(image, 1, 0, sign * _SHIFT, 0, 1, 0),
    lambda image, sign: _apply_affine(image, 1, 0, 0, 0, 1, sign * _SHIFT),
    lambda image, sign: image.rotate(sign * _ROTATION, Image.Resampling.BILINEAR, fillcolor=_FILL),
)
