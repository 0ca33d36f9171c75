"""Convert images of any mode to RGB of a workable size, and find their content."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageChops, ImageFilter

from chip_core.data.image_files import to_rgb
from chip_core.data.rejected_images.base import Source
from chip_core.utils.errors import TrialError

#: Strategies work on at most this many pixels: 4096 × 4096, more than any model's input.
MOST_PIXELS = 2**24

Box = tuple[int, int, int, int]


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, with transparent parts on white; images that were read already are.

    Raises:
        TrialError: its mode cannot be converted.
    """
    try:
        return to_rgb(image)
    except ValueError as error:
        raise TrialError(f"an image of mode {image.mode} cannot be read as RGB ({error})") from None


def bounded(image: Image.Image, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Return the image, scaled down if it has too many pixels to work on."""
    width, height = image.size
    if width * height <= most_pixels:
        return image
    scale = math.sqrt(most_pixels / (width * height))
    width = max(1, int(width * scale))
    return image.resize((width, max(1, min(int(height * scale), most_pixels // width))))


def other_image(source: Source) -> Image.Image:
    """Return another sample's training image that does not show the same picture.

    Raises:
        TrialError: there is none.
    """
    numbers, count = source.numbers(), len(source.others)
    drawn = [int(numbers.random() * count) for _ in range(32 if count else 0)]
    # Nearly always the first or second draw; the loop is for data with hardly a second picture.
    for index in [*drawn, *range(count)]:
        other = source.others[index]
        if other.id == source.id:
            continue
        image = bounded(as_rgb(other.image))
        if not same_pixels(image, source.image):
            return image
    raise TrialError(f"no training image differs from that of {source.id}: give more data")


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    """Return whether two RGB images are equal in every pixel."""
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def content_boxes(
    image: Image.Image, numbers: Random, *, count: int, share: float
) -> Sequence[Box]:
    """Return boxes (left, top, right, bottom) drawn where the image has edges.

    Args:
        image: RGB.
        numbers: the draw.
        count: how many boxes; they may overlap.
        share: share of the image's area, all boxes together.
    """
    width, height = image.size
    weights = _edges(image)
    columns, rows = weights.size
    # + 1, so that an image without edges has positions, too.
    energy = [16 * value + 1 for value in weights.tobytes()]
    boxes = []
    for _ in range(count):
        place = _weighted(energy, numbers.random())
        x = (place % columns + numbers.random()) / columns * width
        y = (place // columns + numbers.random()) / rows * height
        aspect = 2 ** (2 * numbers.random() - 1)  # from 1:2 to 2:1
        area = share / count * width * height
        across = min(width, max(1, round(math.sqrt(area * aspect))))
        down = min(height, max(1, round(area / across)))
        left = min(max(0, round(x - across / 2)), width - across)
        top = min(max(0, round(y - down / 2)), height - down)
        boxes.append((left, top, left + across, top + down))
    return boxes


def _edges(image: Image.Image) -> Image.Image:
    """Return the amount of detail in each part, as a grey image of at most 16 × 16."""
    grey = image.convert("L")
    grey.thumbnail((128, 128))
    detail = ImageChops.difference(grey, grey.filter(ImageFilter.GaussianBlur(3)))
    return detail.resize(tuple(min(16, side) for side in detail.size), Image.Resampling.BOX)  # type: ignore[arg-type]


def _weighted(weights: Sequence[float], number: float) -> int:
    rest = number * sum(weights)
    for place, weight in enumerate(weights):
        rest -= weight
        if rest < 0:
            return place
    return len(weights) - 1
