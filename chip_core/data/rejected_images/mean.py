"""`mean`: the processor's mean colour, whose normalised values are 0.

This is what the released code calls `black`: it sets the normalised tensor to 0. Here it is an
image of 8-bit values, so normalised values are within 0.5/255 of a deviation's share of 0.
"""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import NoParameters


@REJECTED_IMAGES.register("mean")
class Mean(ImageStrategy[NoParameters]):
    """One colour: the processor's image mean."""

    traits = Traits(random=False, keeps_size=True, void_where="an image of that colour already")

    def reject(self, source: Source) -> Image.Image:
        """Return an image of the mean colour, of the same size."""
        return Image.new("RGB", source.image.size, source.mean)
