"""Convert images of any mode to RGB of a workable size, and find their content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageChops, ImageFilter

from chip_core.data.image_files import to_rgb
from chip_core.utils.errors import TrialError

#: Strategies work on at most this many pixels: 4096 × 4096, more than any model's input.
MAX_WORKING_PIXELS = 2**24

Box = tuple[int, int, int, int]


def to_rgb_image(image: Image.Image) -> Image.Image:
    """Return an image in RGB, with transparent parts on white; images that were read already are.

    Raises:
        TrialError: its mode cannot be converted.
    """
    try:
        return to_rgb(image)
    except ValueError as error:
        raise TrialError(f"an image of mode {image.mode} cannot be read as RGB ({error})") from None


def limit_pixels(image: Image.Image, max_pixels: int = MAX_WORKING_PIXELS) -> Image.Image:
    """Return the image, scaled down if it has too many pixels to work on."""
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    width = max(1, int(width * scale))
    return image.resize((width, max(1, min(int(height * scale), max_pixels // width))))


def has_same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Return whether two RGB images are equal in every pixel."""
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def draw_content_boxes(
    image: Image.Image, rng: Random, *, count: int, share: float
) -> Sequence[Box]:
    """Return boxes (left, top, right, bottom) drawn where the image has edges.

    Args:
        image: RGB.
        rng: the draw.
        count: how many boxes; they may overlap.
        share: share of the image's area, all boxes together.
    """
    width, height = image.size
    weights = _compute_edge_map(image)
    columns, rows = weights.size
    # + 1, so that an image without edges has positions, too.
    energy = [16 * value + 1 for value in weights.tobytes()]
    boxes = []
    for _ in range(count):
        index = _choose_weighted(energy, rng.random())
        x = (index % columns + rng.random()) / columns * width
        y = (index // columns + rng.random()) / rows * height
        aspect = 2 ** (2 * rng.random() - 1)  # from 1:2 to 2:1
        area = share / count * width * height
        box_width = min(width, max(1, round(math.sqrt(area * aspect))))
        box_height = min(height, max(1, round(area / box_width)))
        left = min(max(0, round(x - box_width / 2)), width - box_width)
        top = min(max(0, round(y - box_height / 2)), height - box_height)
        boxes.append((left, top, left + box_width, top + box_height))
    return boxes


def _compute_edge_map(image: Image.Image) -> Image.Image:
    """Return the amount of detail in each part, as a grey image of at most 16 × 16."""
    grey = image.convert("L")
    grey.thumbnail((128, 128))
    detail = ImageChops.difference(grey, grey.filter(ImageFilter.GaussianBlur(3)))
    return detail.resize(tuple(min(16, side) for side in detail.size), Image.Resampling.BOX)  # type: ignore[arg-type]


def _choose_weighted(weights: Sequence[float], number: float) -> int:
    remaining = number * sum(weights)
    for index, weight in enumerate(weights):
        remaining -= weight
        if remaining < 0:
            return index
    return len(weights) - 1
