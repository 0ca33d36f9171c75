"""The interface of a rejected-image strategy: its traits, settings, inputs and name."""

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
from chip_core.utils import registry
from chip_core.utils.errors import ConfigError
from chip_core.utils.registry import Registry

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
                f"'{name}' is no rejected-image strategy: make it a subclass of "
                "chip_core.data.rejected_images.ImageStrategy or PixelStrategy"
            ]
        )
    if inspect.isabstract(strategy):
        missing = ", ".join(sorted(strategy.__abstractmethods__))
        raise ConfigError([f"'{name}' is not whole: it lacks {missing}()"])
    return strategy
