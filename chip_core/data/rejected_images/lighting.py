"""`lighting`: far too dark or far too bright."""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import LightingParameters


@REJECTED_IMAGES.register("lighting")
class Lighting(ImageStrategy[LightingParameters]):
    """All values times a gain, or divided by it; what passes white is cut."""

    parameters = LightingParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        void_where="an image that is black, or white and made brighter",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the image under the drawn light, of the same size."""
        numbers = source.numbers()
        low, high = self.settings.low, self.settings.high
        gain = low + numbers.random() * (high - low)
        factor = gain if numbers.random() < 0.5 else 1 / gain
        table = [min(255, round(value * factor)) for value in range(256)]
        return source.image.point(table * 3)
