"""`rotate`: the image turned by 10–80 degrees, as released."""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import RotateParameters


@REJECTED_IMAGES.register("rotate")
class Rotate(ImageStrategy[RotateParameters]):
    """A turn to the left; the corners that come into view are black."""

    parameters = RotateParameters
    traits = Traits(
        random=True, keeps_size=True, void_where="an image of one pixel; one that is black"
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the turned image, of the same size."""
        low, high = self.settings.low, self.settings.high
        angle = low + source.numbers().random() * (high - low)
        return source.image.rotate(angle, Image.Resampling.BICUBIC)
