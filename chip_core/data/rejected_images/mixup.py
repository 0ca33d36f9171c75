"""`mixup`: the image mixed with another training image."""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.images import another
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import MixupParameters


@REJECTED_IMAGES.register("mixup")
class Mixup(ImageStrategy[MixupParameters]):
    """(1 − weight) · image + weight · another image, scaled to the same size."""

    parameters = MixupParameters
    traits = Traits(
        random=True,
        keeps_size=True,
        needs_others=True,
        void_where="an image that another one equals when scaled to its size",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the mixture, of the same size."""
        other = another(source).resize(source.image.size, Image.Resampling.BICUBIC)
        return Image.blend(source.image, other, self.settings.weight)
