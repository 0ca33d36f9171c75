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
from chip_core.data.rejected_images.images import MOST_PIXELS, as_rgb, same_pixels
from chip_core.data.rejected_images.maker import RejectedImage, RejectedImages
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
    for place in range(3 + number % 5):
        left, top = (37 * place + 53 * number) % width, (29 * place + 31 * number) % height
        shade = ((60 * place) % 256, (90 * number) % 256, 40)
        pen.ellipse((left, top, left + width // 4, top + height // 4), fill=shade)
    pen.rectangle((0, height // 2, width // 3, height // 2 + height // 10), fill="white")
    return image


class StrategyHarness:
    """A strategy and the samples to test it on."""

    def __init__(self, config: RejectedImageConfig) -> None:
        self.config = config
        self.traits = RejectedImages(config).traits
        self.samples = [
            _Sample(
                id=f"s{number}",
                image=sample_image(number),
                rejected_image=sample_image(number + 50),
            )
            for number in range(6)
        ]

    def make(
        self, sample: _Sample | None = None, *, seed: int = 0, epoch: int = 0, **changes: object
    ) -> RejectedImage:
        """Return the rejected image of a sample, by default of the first one."""
        sample = sample or self.samples[0]
        maker = RejectedImages(self.config.model_copy(update=changes), seed=seed)
        return maker.preview(sample, epoch=epoch, others=self.samples, given=sample.rejected_image)

    def of(self, image: Image.Image) -> RejectedImage:
        """Return the rejected image of an image."""
        return self.make(_Sample(id="x", image=image, rejected_image=sample_image(9)))


def conformance(config: RejectedImageConfig) -> dict[str, str | None]:
    """Return check -> what is wrong; None if it passes.

    Raises:
        ConfigError: it is not a strategy.
    """
    try:
        bench = StrategyHarness(config)
    except ConfigError:
        raise  # it is not a strategy
    except Exception as error:  # a user's strategy may raise anything
        return {"it can be made": describe_error(error)}
    found: dict[str, str | None] = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(bench)
        except Exception as error:  # a user's strategy may raise anything
            found[name] = describe_error(error)
    return found


def _same_key_same_draw(bench: StrategyHarness) -> str | None:
    if not same_pixels(bench.make(seed=3).image, bench.make(seed=3).image):
        return "two draws of one key differ"
    return None


def _another_key_another_draw(bench: StrategyHarness) -> str | None:
    one = bench.make().image
    first = bench.samples[0]
    twin = _Sample(id="twin", image=first.image, rejected_image=first.rejected_image)
    others = {
        "seed": bench.make(seed=1).image,
        "sample": bench.make(twin).image,
        "epoch under redraw: each_epoch": bench.make(epoch=1, redraw="each_epoch").image,
    }
    for what, image in others.items():
        # `random` has five other images to draw from: another key may hit the same one.
        if same_pixels(one, image) == bench.traits.random and not bench.traits.needs_others:
            if bench.traits.random:
                return f"declared random, and another {what} gives the same image"
            return f"declared fixed, and another {what} gives another image"
    if bench.traits.needs_others:
        drawn = [bench.make(seed=seed).image for seed in range(12)]
        if all(same_pixels(drawn[0], image) for image in drawn):
            return "twelve seeds draw one image"
    return None


def _epochs_once(bench: StrategyHarness) -> str | None:
    if not same_pixels(bench.make(redraw="once").image, bench.make(epoch=1, redraw="once").image):
        return "redraw is once, and another epoch gives another image"
    return None


def _sizes(bench: StrategyHarness) -> str | None:
    on_pixels = RejectedImages(bench.config).acts_on_pixel_values
    for size in SIZES:
        made = bench.of(sample_image(1, size)).image
        whole = not on_pixels or size[0] * size[1] <= MOST_PIXELS  # else the preview is smaller
        if bench.traits.keeps_size and whole and made.size != size:
            return f"declared to keep the size, and {size} becomes {made.size}"
    return None


def _modes(bench: StrategyHarness) -> str | None:
    plain = sample_image(2, (96, 64))
    for mode in MODES:
        image = _in_mode(plain, mode)
        made, as_if = bench.of(image).image, bench.of(as_rgb(image)).image
        if made.mode != "RGB" or not same_pixels(made, as_if):
            return f"mode {mode} gives another image than the same one in RGB"
    return None


def _void(bench: StrategyHarness) -> str | None:
    if bench.make().void:
        return "no effect on an image of 400 × 300 with detail"
    cases = [
        sample_image(1, (1, 1)),
        sample_image(1, (48, 48)),
        *(Image.new("RGB", (9, 9), c) for c in _FLAT),
    ]
    for image in cases:
        made = bench.of(image)
        if made.void != same_pixels(made.image, image):
            return f"void is {made.void}, and the image is {'' if made.void else 'not '}another"
        if made.void and bench.traits.void_where is None:
            return f"no effect on an image of {image.size}, and void_where is not declared"
    return None


def _leaves_the_rest_alone(bench: StrategyHarness) -> str | None:
    import torch

    image = sample_image(3)
    before = image.copy(), random.getstate(), torch.get_rng_state()
    bench.of(image)
    if not same_pixels(image, before[0]):
        return "the true image is changed in place"
    if random.getstate() != before[1] or not torch.equal(torch.get_rng_state(), before[2]):
        return "the process's own random numbers are drawn from"
    return None


def _pixel_values(bench: StrategyHarness) -> str | None:
    import torch

    maker = RejectedImages(bench.config)
    if not maker.acts_on_pixel_values:
        return None
    for shape in ((1, 3, 48, 48), (1, 5, 3, 16, 16), (64, 1176)):  # one image, tiles, patches
        values = torch.linspace(-2, 2, int(torch.tensor(shape).prod())).reshape(shape)
        left = maker.corrupt(values.to(torch.bfloat16), sample="x")
        if left.shape != values.shape or left.dtype != torch.float32:
            return f"{shape} in bf16 becomes {tuple(left.shape)} in {left.dtype}"
        if not torch.isfinite(left).all():
            return "a pixel value is not finite"
    return None


def _says_what_it_lacks(bench: StrategyHarness) -> str | None:
    maker, sample = RejectedImages(bench.config), bench.samples[0]
    needs = bench.traits.needs_others or bench.traits.needs_given
    try:
        maker.preview(sample, others=[sample])
    except TrialError:
        return None if needs else "declared to need nothing, and fails without"
    return "declared to need what it was not given, and does not say so" if needs else None


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return image.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
    if mode in ("LA", "RGBA"):
        image = image.copy()
        image.putalpha(Image.radial_gradient("L").resize(image.size))
        return image.convert(mode)
    made = image.convert(mode)
    if mode == "P":
        made.info["transparency"] = bytes(range(256))
    return made


_FLAT = ("black", "white", (122, 117, 104), "red")

#: The checks of every strategy, by name.
CHECKS: dict[str, Callable[[StrategyHarness], str | None]] = {
    "the same key gives the same draw": _same_key_same_draw,
    "another key gives another draw where it is random": _another_key_another_draw,
    "once is once": _epochs_once,
    "every size, and kept where it says so": _sizes,
    "every mode": _modes,
    "void is told": _void,
    "nothing else is touched": _leaves_the_rest_alone,
    "pixel values of every shape": _pixel_values,
    "what it lacks is told": _says_what_it_lacks,
}
