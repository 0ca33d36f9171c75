"""`crop`: a window of the image, scaled back to the image's size.

The released code draws a window of at most 320 × 240 with its sides swapped, and leaves the
scaling to the processor. An image that is no larger than the window is left as it is there, too.
"""

from __future__ import annotations

import math

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import CropParameters


@REJECTED_IMAGES.register("crop")
class Crop(ImageStrategy[CropParameters]):
    """A random window."""

    parameters = CropParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        void_where="an image no larger than the window; one without detail",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return a window of the image at the image's size."""
        width, height = source.image.size
        across, down = self._window(width, height)
        if (across, down) == (width, height):
            return source.image
        numbers = source.numbers()
        left = int(numbers.random() * (width - across + 1))
        top = int(numbers.random() * (height - down + 1))
        window = (left, top, left + across, top + down)
        return source.image.resize((width, height), Image.Resampling.BICUBIC, box=window)

    def _window(self, width: int, height: int) -> tuple[int, int]:
        share = self.settings.share
        if share is None:
            return min(width, self.settings.width), min(height, self.settings.height)
        side = math.sqrt(share)
        return max(1, round(width * side)), max(1, round(height * side))
