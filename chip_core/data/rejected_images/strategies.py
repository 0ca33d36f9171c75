"""The strategies that act on the RGB image and need no model: one class each.

Where they differ from the released code: its `black` is the mean grey, here `mean`. It sets the
normalised tensor to 0; here `mean` is an image of 8-bit values, so normalised values are within
0.5/255 of a deviation's share of 0. Its `random` can draw the image itself. Its `crop` draws a
window of at most 320 × 240 with its sides swapped, and leaves the scaling to the processor; an
image that is no larger than the window is left as it is there, too.
"""

from __future__ import annotations

import math

from PIL import Image, ImageFilter

from chip_core.config.strategies import (
    BlurParameters,
    CropParameters,
    LightingParameters,
    MixupParameters,
    NoParameters,
    OcclusionParameters,
    RotateParameters,
)
from chip_core.data.rejected_images.base import ImageStrategy, Source, Traits
from chip_core.data.rejected_images.images import content_boxes, other_image
from chip_core.data.rejected_images.registry import REJECTED_IMAGES
from chip_core.utils.errors import TrialError


@REJECTED_IMAGES.register("black")
class Black(ImageStrategy[NoParameters]):
    """A black image."""

    traits = Traits(random=False, keeps_size=True, void_where="an image that is black already")

    def reject(self, source: Source) -> Image.Image:
        """Return a black image of the same size."""
        return Image.new("RGB", source.image.size)


@REJECTED_IMAGES.register("blur")
class Blur(ImageStrategy[BlurParameters]):
    """Gaussian blur, its width relative to the image and at least one pixel."""

    parameters = BlurParameters
    traits = Traits(random=False, keeps_size=True, void_where="an image without detail")

    def reject(self, source: Source) -> Image.Image:
        """Return the blurred image, of the same size."""
        radius = max(1.0, self.settings.radius * min(source.image.size))
        return source.image.filter(ImageFilter.GaussianBlur(radius))


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


@REJECTED_IMAGES.register("mean")
class Mean(ImageStrategy[NoParameters]):
    """One colour: the processor's image mean."""

    traits = Traits(random=False, keeps_size=True, void_where="an image of that colour already")

    def reject(self, source: Source) -> Image.Image:
        """Return an image of the mean colour, of the same size."""
        return Image.new("RGB", source.image.size, source.mean)


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
        other = other_image(source).resize(source.image.size, Image.Resampling.BICUBIC)
        return Image.blend(source.image, other, self.settings.weight)


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


@REJECTED_IMAGES.register("random")
class RandomImage(ImageStrategy[NoParameters]):
    """Another sample's image that shows another picture."""

    traits = Traits(random=True, keeps_size=False, needs_others=True)

    def reject(self, source: Source) -> Image.Image:
        """Return another image, of its own size."""
        return other_image(source)


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
