"""Rejected images: the interface of a strategy, and the maker that applies one.

A draw is a function of the strategy with its settings, the corruption seed, the sample's id and,
with `redraw: each_epoch`, the epoch.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from PIL import Image

from chip_core.config.fields import Section
from chip_core.config.strategies import NoParameters
from chip_core.config.trial import RejectedImageConfig
from chip_core.data.rejected_images.images import has_same_pixels, limit_pixels, to_rgb_image
from chip_core.utils import registry
from chip_core.utils.errors import ConfigError, TrialError
from chip_core.utils.registry import Registry
from chip_core.utils.seeding import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

Colour = tuple[int, int, int]
P = TypeVar("P", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The declared properties of a strategy; the conformance suite checks them."""

    random: bool  # drawn with a seed; otherwise the same for every seed and epoch
    keeps_size: bool  # the rejected image has the true one's width and height
    needs_others: bool = False  # it needs other training images
    needs_given: bool = False  # it needs the data's own rejected image
    void_where: str | None = None  # the images on which it has no effect


class ImageSample(Protocol):
    """The attributes of a training sample that a strategy reads."""

    @property
    def id(self) -> str:
        """Its name."""

    @property
    def image(self) -> Image.Image:
        """Its image."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The inputs for one rejected image."""

    id: str
    image: Image.Image  # RGB, bounded
    seed: int  # of this draw alone
    mean: Colour  # the processor's image mean: its normalised values are 0
    others: Sequence[ImageSample] = ()
    given: Image.Image | None = None  # RGB, bounded

    def numbers(self) -> Random:
        """Return the draw's random numbers; only `.random()` is the same in every Python."""
        return Random(self.seed)


class Strategy(ABC, Generic[P]):
    """A way to make the rejected image. Subclass ImageStrategy or PixelStrategy."""

    parameters: ClassVar[type[Section]] = NoParameters
    traits: ClassVar[Traits]

    def __init__(self, settings: P) -> None:
        self.settings = settings

    def key(self) -> tuple[object, ...]:
        """Return the settings' part of the draw's key."""
        return (json.dumps(self.settings.model_dump(mode="json"), sort_keys=True),)

    @classmethod
    def identity(cls, settings: P) -> dict[str, Any]:
        """Return the settings that decide a trial's figures: their part of the fingerprint.

        Raises:
            ValueError: a file that the settings name cannot be read.
        """
        return settings.model_dump(mode="json")


class ImageStrategy(Strategy[P]):
    """A strategy on the RGB image, before the processor."""

    @abstractmethod
    def reject(self, source: Source) -> Image.Image:
        """Return the rejected image, in RGB; the true one if there is no effect.

        Raises:
            TrialError: something that it needs is missing.
        """


class PixelStrategy(Strategy[P]):
    """A strategy on the processor's normalised pixel values."""

    @abstractmethod
    def corrupt(self, pixel_values: Tensor, seed: int) -> Tensor:
        """Return pixel values of the same shape, in float32."""


StrategyClass = type[Strategy[Any]]

REJECTED_IMAGES: Registry[StrategyClass] = Registry("rejected-image strategy")


def find_strategy(name: str) -> StrategyClass:
    """Return the strategy of a name, built in or `module:attr`.

    Raises:
        KeyError: there is none of that name.
        ValueError: the user's own cannot be imported.
        ConfigError: the user's own is not a strategy.
    """
    if not registry.is_plugin(name):
        return REJECTED_IMAGES[name]
    strategy = registry.load_plugin(name)
    if not (isinstance(strategy, type) and issubclass(strategy, (ImageStrategy, PixelStrategy))):
        raise ConfigError(
            [
                f"'{name}' is not a rejected-image strategy: make it a subclass of "
                "chip_core.data.rejected_images.ImageStrategy or PixelStrategy"
            ]
        )
    if inspect.isabstract(strategy):
        missing = ", ".join(sorted(strategy.__abstractmethods__))
        raise ConfigError([f"'{name}' is not complete: it has no {missing}()"])
    return strategy


#: CLIP's mean, for pictures made without a processor.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class RejectedImage:
    """An image for the processor, and whether it is the true one."""

    image: Image.Image
    void: bool


class RejectedImageMaker:
    """Make the rejected images of one configuration."""

    def __init__(
        self,
        config: RejectedImageConfig,
        *,
        seed: int = 0,
        image_mean: Sequence[float] = IMAGE_MEAN,
    ) -> None:
        """Create a maker.

        Args:
            config: strategy and settings.
            seed: the corruption seed.
            image_mean: what the processor subtracts from values between 0 and 1.
        """
        self._config = config
        self._seed = seed
        self._strategy = find_strategy(config.strategy)(config.settings)
        red, green, blue = (round(255 * value) for value in image_mean)
        self._mean = (red, green, blue)

    @property
    def traits(self) -> Traits:
        """The strategy's declared properties."""
        return self._strategy.traits

    @property
    def acts_on_pixel_values(self) -> bool:
        """Whether the strategy acts after the processor."""
        return isinstance(self._strategy, PixelStrategy)

    def image(
        self,
        sample: ImageSample,
        *,
        epoch: int = 0,
        others: Sequence[ImageSample] = (),
        given: Image.Image | None = None,
    ) -> RejectedImage:
        """Return the image that the processor gets instead of the true one.

        Args:
            sample: the sample, with its true image.
            epoch: of the training, from 0.
            others: the training samples; the sample may be among them.
            given: the sample's own rejected image.

        Raises:
            TrialError: something that the strategy needs is missing, or it did not return an RGB
                image of the size it declares.
        """
        assert isinstance(self._strategy, ImageStrategy), "acts after the processor: corrupt()"
        true_image = to_rgb_image(sample.image)
        working_image = limit_pixels(true_image)
        source = Source(
            id=sample.id,
            image=working_image,
            seed=self._draw_seed(sample.id, epoch),
            mean=self._mean,
            others=others,
            given=None if given is None else limit_pixels(to_rgb_image(given)),
        )
        rejected = self._strategy.reject(source)
        if not isinstance(rejected, Image.Image) or rejected.mode != "RGB":
            returned = (
                rejected.mode if isinstance(rejected, Image.Image) else type(rejected).__name__
            )
            raise TrialError(
                f"rejected_image: '{self._config.strategy}' returned {returned}, not an RGB image"
            )
        if has_same_pixels(rejected, working_image):
            return RejectedImage(image=true_image, void=True)
        if self.traits.keeps_size:
            if rejected.size != working_image.size:
                raise TrialError(
                    f"rejected_image: '{self._config.strategy}' declares that it keeps the size, "
                    f"but turned {working_image.size} into {rejected.size}"
                )
            if working_image is not true_image:  # computed at a smaller size
                rejected = rejected.resize(true_image.size)
        return RejectedImage(image=rejected, void=False)

    def corrupt(self, pixel_values: Tensor, *, sample: str, epoch: int = 0) -> Tensor:
        """Return the processor's pixel values after the strategy.

        Args:
            pixel_values: any shape, normalised.
            sample: the sample's id.
            epoch: of the training, from 0.

        Raises:
            TrialError: it returned another shape.
        """
        assert isinstance(self._strategy, PixelStrategy), "acts before the processor: image()"
        corrupted = self._strategy.corrupt(pixel_values, self._draw_seed(sample, epoch))
        shape = getattr(corrupted, "shape", None)
        if shape != pixel_values.shape:
            returned = type(corrupted).__name__ if shape is None else tuple(shape)
            raise TrialError(
                f"rejected_image: '{self._config.strategy}' made {returned} of pixel values "
                f"{tuple(pixel_values.shape)}"
            )
        return corrupted

    def preview(
        self,
        sample: ImageSample,
        *,
        epoch: int = 0,
        others: Sequence[ImageSample] = (),
        given: Image.Image | None = None,
    ) -> RejectedImage:
        """Return a picture of the rejected image for people, at the true image's own size.

        A strategy that acts after the processor is shown on CLIP-normalised values; its output is
        converted back to colours and clipped at black and white.
        """
        if not self.acts_on_pixel_values:
            return self.image(sample, epoch=epoch, others=others, given=given)
        import numpy
        import torch

        true_image = limit_pixels(to_rgb_image(sample.image))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        colours = torch.from_numpy(numpy.asarray(true_image, dtype=numpy.float32) / 255)
        values = ((colours.permute(2, 0, 1) - mean) / std).unsqueeze(0)
        corrupted = self.corrupt(values, sample=sample.id, epoch=epoch)[0] * std + mean
        pixels = (corrupted.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        rejected = Image.fromarray(pixels)
        return RejectedImage(image=rejected, void=has_same_pixels(rejected, true_image))

    def _draw_seed(self, sample: str, epoch: int) -> int:
        key = ("rejected_image", self._config.strategy, *self._strategy.key(), self._seed, sample)
        if self._config.redraw == "each_epoch":
            key = (*key, "epoch", epoch)
        return derive_seed(*key)
