"""The settings of each rejected-image strategy.

The strategies themselves are in chip_core/data/rejected_images/; their settings are here, below the
configuration, so that a study is planned without an imaging library.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from chip_core.config.fields import Section, hashed


class NoParameters(Section):
    """There are no settings."""


class DiffusionParameters(Section):
    """Forward diffusion noise on the normalised pixel values."""

    timestep: int = hashed(500, ge=0, le=999, doc="T, of 1000 steps")
    schedule: Literal["sigmoid", "linear", "scaled_linear", "cosine"] = hashed(
        "sigmoid", doc="schedule of the noise's variance; 'sigmoid' is the released one"
    )


class CropParameters(Section):
    """A window of the image, drawn at random and scaled to the image's size."""

    width: int = hashed(320, ge=1, doc="of the window, in pixels")
    height: int = hashed(240, ge=1, doc="of the window, in pixels")
    share: float | None = hashed(
        None, gt=0, lt=1, doc="share of the image's area, instead of width and height"
    )


class _RangeParameters(Section):
    """The ends of a range from which a number is drawn."""

    low: float
    high: float

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g}, above high, {self.high:g}: swap them")
        return self


class RotateParameters(_RangeParameters):
    """A turn to the left by a random angle; new corners are black."""

    low: float = hashed(10.0, ge=0, le=360, doc="smallest angle, in degrees")
    high: float = hashed(80.0, ge=0, le=360, doc="largest angle, in degrees")


class LightingParameters(_RangeParameters):
    """All values times a random gain below 1, or by its inverse with even odds."""

    low: float = hashed(0.15, gt=0, lt=1, doc="smallest gain")
    high: float = hashed(0.4, gt=0, lt=1, doc="largest gain")


class OcclusionParameters(Section):
    """Boxes of one colour over the image's content."""

    boxes: int = hashed(3, ge=1, le=64, doc="how many")
    share: float = hashed(0.4, gt=0, le=1, doc="of the image's area, all boxes together at most")
    fill: Literal["mean", "black"] = hashed("mean", doc="colour of the boxes: the processor's mean")


class BlurParameters(Section):
    """Gaussian blur."""

    radius: float = hashed(0.06, gt=0, le=1, doc="sigma as a share of the shorter side")


class MixupParameters(Section):
    """The image mixed with another training image."""

    weight: float = hashed(0.5, gt=0, lt=1, doc="weight of the other image")


class InpaintParameters(Section):
    """Boxes over the image's content, filled by a diffusers inpainting pipeline."""

    path: str | None = hashed(None, doc="a folder with a diffusers inpainting pipeline")
    prompt: str = hashed("background", doc="prompt for filling the boxes")
    boxes: int = hashed(2, ge=1, le=64, doc="how many")
    share: float = hashed(0.4, gt=0, le=1, doc="of the image's area, all boxes together at most")
    steps: int = hashed(20, ge=1, le=1000, doc="of denoising")
    guidance: float = hashed(7.5, ge=0, doc="scale of classifier-free guidance")
    side: int = hashed(512, ge=64, le=2048, doc="longest side while painting, in pixels")


#: Every strategy by name, with its settings.
STRATEGIES: dict[str, type[Section]] = {
    "diffusion": DiffusionParameters,
    "black": NoParameters,
    "mean": NoParameters,
    "crop": CropParameters,
    "rotate": RotateParameters,
    "random": NoParameters,
    "lighting": LightingParameters,
    "occlusion": OcclusionParameters,
    "blur": BlurParameters,
    "mixup": MixupParameters,
    "inpaint": InpaintParameters,
    "given": NoParameters,
}
