"""`blur`: the image without its detail."""

from __future__ import annotations

from PIL import Image, ImageFilter

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import BlurParameters


@REJECTED_IMAGES.register("blur")
class Blur(ImageStrategy[BlurParameters]):
    """Gaussian blur, its width relative to the image and at least one pixel."""

    parameters = BlurParameters
    traits = Traits(random=False, keeps_size=True, void_where="an image without detail")

    def reject(self, source: Source) -> Image.Image:
        """Return the blurred image, of the same size."""
        radius = max(1.0, self.settings.radius * min(source.image.size))
        return source.image.filter(ImageFilter.GaussianBlur(radius))
