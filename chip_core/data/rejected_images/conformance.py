"""Check a rejected-image strategy, built in or a user's own.

`conformance(config)` runs each check and returns what is wrong. Checks use the pictures of
`preview`, so that strategies on images and on pixel values pass the same checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from chip_core.config.trial import RejectedImageConfig
from chip_core.data.rejected_images.base import RejectedImage, RejectedImageMaker
from chip_core.data.rejected_images.images import MAX_WORKING_PIXELS, has_same_pixels, to_rgb_image
from chip_core.utils.errors import ConfigError, TrialError, describe_error

MODES = ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F")
#: A 4:3 photo, a tall one, one of the embedded world, thin ones, one above the bound.
SIZES = ((400, 300), (301, 523), (48, 48), (1, 1), (1, 40), (2000, 2), (4224, 4096))


@dataclass(frozen=True, kw_only=True)
class _Sample:
    id: str
    image: Image.Image
    rejected_image: Image.Image


def sample_image(number: int, size: tuple[int, int] = (400, 300)) -> Image.Image:
    """Return an image with detail that depends on a number: bars and discs on a colour gradient."""
    width, height = size
    slope = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (slope, slope.point(lambda value: 255 - value // 2), slope))
    pen = ImageDraw.Draw(image)
    for index in range(3 + number % 5):
        left, top = (37 * index + 53 * number) % width, (29 * index + 31 * number) % height
        shade = ((60 * index) % 256, (90 * number) % 256, 40)
        pen.ellipse((left, top, left + width // 4, top + height // 4), fill=shade)
    pen.rectangle((0, height // 2, width // 3, height // 2 + height // 10), fill="white")
    return image


class StrategyHarness:
    """A strategy and the samples to test it on."""

    def __init__(self, config: RejectedImageConfig) -> None:
        self.config = config
        self.traits = RejectedImageMaker(config).traits
        self.samples = [
            _Sample(
                id=f"s{number}",
                image=sample_image(number),
                rejected_image=sample_image(number + 50),
            )
            for number in range(6)
        ]

    def make_rejected(
        self, sample: _Sample | None = None, *, seed: int = 0, epoch: int = 0, **changes: object
    ) -> RejectedImage:
        """Return the rejected image of a sample, by default of the first one."""
        sample = sample or self.samples[0]
        maker = RejectedImageMaker(self.config.model_copy(update=changes), seed=seed)
        return maker.preview(sample, epoch=epoch, others=self.samples, given=sample.rejected_image)

    def make_from_image(self, image: Image.Image) -> RejectedImage:
        """Return the rejected image of an image."""
        return self.make_rejected(_Sample(id="x", image=image, rejected_image=sample_image(9)))


def conformance(config: RejectedImageConfig) -> dict[str, str | None]:
    """Return check -> what is wrong; None if it passes.

    Raises:
        ConfigError: it is not a strategy.
    """
    try:
        harness = StrategyHarness(config)
    except ConfigError:
        raise  # it is not a strategy
    except Exception as error:  # a user's strategy may raise anything
        return {"it can be made": describe_error(error)}
    results: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        try:
            results[name] = check(harness)
        except Exception as error:  # a user's strategy may raise anything
            results[name] = describe_error(error)
    return results


def _check_same_key(harness: StrategyHarness) -> str | None:
    if not has_same_pixels(
        harness.make_rejected(seed=3).image, harness.make_rejected(seed=3).image
    ):
        return "two draws of the same key differ"
    return None


def _check_other_keys(harness: StrategyHarness) -> str | None:
    reference = harness.make_rejected().image
    first = harness.samples[0]
    twin = _Sample(id="twin", image=first.image, rejected_image=first.rejected_image)
    others = {
        "seed": harness.make_rejected(seed=1).image,
        "sample": harness.make_rejected(twin).image,
        "epoch under redraw: each_epoch": harness.make_rejected(epoch=1, redraw="each_epoch").image,
    }
    for key, image in others.items():
        # `random` has five other images to draw from: another key may hit the same one.
        if (
            has_same_pixels(reference, image) == harness.traits.random
            and not harness.traits.needs_others
        ):
            if harness.traits.random:
                return f"declared random, but another {key} gives the same image"
            return f"declared fixed, but another {key} gives another image"
    if harness.traits.needs_others:
        drawn = [harness.make_rejected(seed=seed).image for seed in range(12)]
        if all(has_same_pixels(drawn[0], image) for image in drawn):
            return "twelve seeds draw one image"
    return None


def _check_redraw_once(harness: StrategyHarness) -> str | None:
    if not has_same_pixels(
        harness.make_rejected(redraw="once").image,
        harness.make_rejected(epoch=1, redraw="once").image,
    ):
        return "redraw is once, but another epoch gives another image"
    return None


def _check_sizes(harness: StrategyHarness) -> str | None:
    on_pixels = RejectedImageMaker(harness.config).acts_on_pixel_values
    for size in SIZES:
        rejected = harness.make_from_image(sample_image(1, size)).image
        # otherwise the preview is smaller
        is_full_size = not on_pixels or size[0] * size[1] <= MAX_WORKING_PIXELS
        if harness.traits.keeps_size and is_full_size and rejected.size != size:
            return f"declared to keep the size, but {size} becomes {rejected.size}"
    return None


def _check_modes(harness: StrategyHarness) -> str | None:
    plain = sample_image(2, (96, 64))
    for mode in MODES:
        image = _convert_mode(plain, mode)
        rejected = harness.make_from_image(image).image
        from_rgb = harness.make_from_image(to_rgb_image(image)).image
        if rejected.mode != "RGB" or not has_same_pixels(rejected, from_rgb):
            return f"mode {mode} gives another image than the same one in RGB"
    return None


def _check_void(harness: StrategyHarness) -> str | None:
    if harness.make_rejected().void:
        return "no effect on an image of 400 × 300 with detail"
    cases = [
        sample_image(1, (1, 1)),
        sample_image(1, (48, 48)),
        *(Image.new("RGB", (9, 9), colour) for colour in _FLAT_COLOURS),
    ]
    for image in cases:
        rejected = harness.make_from_image(image)
        if rejected.void != has_same_pixels(rejected.image, image):
            other = "" if rejected.void else "not "
            return f"void is {rejected.void}, but the image is {other}another"
        if rejected.void and harness.traits.void_where is None:
            return f"no effect on an image of {image.size}, but void_where is not declared"
    return None


def _check_side_effects(harness: StrategyHarness) -> str | None:
    import torch

    image = sample_image(3)
    before = image.copy(), random.getstate(), torch.get_rng_state()
    harness.make_from_image(image)
    if not has_same_pixels(image, before[0]):
        return "the true image is changed in place"
    if random.getstate() != before[1] or not torch.equal(torch.get_rng_state(), before[2]):
        return "the process's own random numbers are used"
    return None


def _check_pixel_values(harness: StrategyHarness) -> str | None:
    import torch

    maker = RejectedImageMaker(harness.config)
    if not maker.acts_on_pixel_values:
        return None
    for shape in ((1, 3, 48, 48), (1, 5, 3, 16, 16), (64, 1176)):  # one image, tiles, patches
        values = torch.linspace(-2, 2, int(torch.tensor(shape).prod())).reshape(shape)
        corrupted = maker.corrupt(values.to(torch.bfloat16), sample="x")
        if corrupted.shape != values.shape or corrupted.dtype != torch.float32:
            return f"{shape} in bf16 becomes {tuple(corrupted.shape)} in {corrupted.dtype}"
        if not torch.isfinite(corrupted).all():
            return "a pixel value is not finite"
    return None


def _check_missing_inputs(harness: StrategyHarness) -> str | None:
    maker, sample = RejectedImageMaker(harness.config), harness.samples[0]
    has_needs = harness.traits.needs_others or harness.traits.needs_given
    try:
        maker.preview(sample, others=[sample])
    except TrialError:
        return None if has_needs else "declared to need nothing, but fails without other inputs"
    return (
        "declared to need other inputs, but does not report that they are missing"
        if has_needs
        else None
    )


def _convert_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return image.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
    if mode in ("LA", "RGBA"):
        image = image.copy()
        image.putalpha(Image.radial_gradient("L").resize(image.size))
        return image.convert(mode)
    converted = image.convert(mode)
    if mode == "P":
        converted.info["transparency"] = bytes(range(256))
    return converted


_FLAT_COLOURS = ("black", "white", (122, 117, 104), "red")

#: The checks of every strategy, by name.
CHECKS: dict[str, Callable[[StrategyHarness], str | None]] = {
    "the same key gives the same draw": _check_same_key,
    "another key gives another draw where it is random": _check_other_keys,
    "once is once": _check_redraw_once,
    "every size, and kept where it says so": _check_sizes,
    "every mode": _check_modes,
    "void is told": _check_void,
    "nothing else is touched": _check_side_effects,
    "pixel values of every shape": _check_pixel_values,
    "what it lacks is told": _check_missing_inputs,
}
