"""`given`: the rejected image that the data set names for each sample."""

from __future__ import annotations

from PIL import Image

from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.errors import TrialError
from chip_core.strategies import NoParameters


@REJECTED_IMAGES.register("given")
class Given(ImageStrategy[NoParameters]):
    """The sample's own rejected image."""

    traits = Traits(
        random=False,
        keeps_size=False,
        needs_given=True,
        void_where="a sample whose rejected image is the true one",
    )

    def reject(self, source: Source) -> Image.Image:
        """Return the given image, of its own size."""
        if source.given is None:
            raise TrialError(
                f"sample {source.id} has no rejected image of its own: "
                "choose another rejected_image.strategy, or add the image to the data"
            )
        return source.given
