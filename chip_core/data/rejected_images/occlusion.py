"""`occlusion`: boxes over what is to be seen."""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.images import content_boxes
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.strategies import OcclusionParameters


@REJECTED_IMAGES.register("occlusion")
class Occlusion(ImageStrategy[OcclusionParameters]):
    """Boxes of one colour, drawn where the image has edges."""

    parameters = OcclusionParameters
    traits = Traits(
        random=True, keeps_size=True, void_where="an image of the boxes' colour already"
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the image with boxes on it, of the same size."""
        settings, image = self.settings, source.image.copy()
        colour = source.mean if settings.fill == "mean" else (0, 0, 0)
        boxes = content_boxes(
            source.image, source.numbers(), count=settings.boxes, share=settings.share
        )
        for box in boxes:
            image.paste(colour, box)
        return image
