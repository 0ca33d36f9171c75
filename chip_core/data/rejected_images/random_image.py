"""`random`: another training image. (The released code's draw can be the image itself.)"""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.images import another
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import NoParameters


@REJECTED_IMAGES.register("random")
class RandomImage(ImageStrategy[NoParameters]):
    """Another sample's image that shows another picture."""

    traits = Traits(random=True, keeps_size=False, needs_others=True)

    def reject(self, source: Source) -> Image.Image:
        """Return another image, of its own size."""
        return another(source)
