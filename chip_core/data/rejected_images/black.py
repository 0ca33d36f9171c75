"""`black`: nothing to see. (The released code's `black` is the mean grey: see `mean`.)"""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import NoParameters


@REJECTED_IMAGES.register("black")
class Black(ImageStrategy[NoParameters]):
    """A black image."""

    traits = Traits(random=False, keeps_size=True, void_where="an image that is black already")

    def reject(self, source: Source) -> Image.Image:
        """Return a black image of the same size."""
        return Image.new("RGB", source.image.size)
