"""Every strategy passes every check; one that is false to its declaration does not."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip_core.config.strategies import STRATEGIES, NoParameters
from chip_core.config.trial import RejectedImageConfig
from chip_core.data.rejected_images import REJECTED_IMAGES
from chip_core.data.rejected_images.conformance import (
    CHECKS,
    StrategyHarness,
    conformance,
    sample_image,
)


def make_config(strategy: str, pipeline: Path, **settings: Any) -> RejectedImageConfig:
    tree: dict[str, Any] = {"strategy": strategy}
    if strategy == "inpaint":
        settings = {"path": str(pipeline), "steps": 2, "side": 64, **settings}
    if settings:
        tree[strategy] = settings
    return RejectedImageConfig.model_validate(tree)


def test_registry_and_configuration_name_the_same_strategies() -> None:
    assert set(REJECTED_IMAGES) == set(STRATEGIES)
    for name, section in STRATEGIES.items():
        assert REJECTED_IMAGES[name].parameters is section
        if section is not NoParameters:
            assert RejectedImageConfig.model_fields[name].annotation is section


@cache
def draw_sample(*given: Any) -> Image.Image:
    return sample_image(*given)


@pytest.fixture
def cached_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw each sample once: that of 17 million pixels takes longer than most strategies."""
    once = "chip_core.data.rejected_images.conformance.sample_image"
    monkeypatch.setattr(once, lambda *given: draw_sample(*given).copy())


@pytest.mark.usefixtures("cached_samples")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_passes_every_check(strategy: str, check: str, pipeline: Path) -> None:
    assert CHECKS[check](StrategyHarness(make_config(strategy, pipeline))) is None


FALSE = """
import itertools, random
from PIL import Image, ImageOps
from chip_core.data.rejected_images import ImageStrategy, PixelStrategy, Traits

FIXED = Traits(random=False, keeps_size=True)
COUNT = itertools.count()

def turned(image, by):
    return image.point(lambda value: (value + 16 * by + 16) % 256)

class Forgetful(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        return turned(source.image, next(COUNT) % 15)

class Drawn(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        return turned(source.image, int(source.numbers().random() * 15))

class First(ImageStrategy):
    traits = Traits(random=True, keeps_size=False, needs_others=True)
    def reject(self, source):
        return turned(source.others[1].image, 3)

class Halved(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        return Image.new("RGB", (max(1, source.image.width // 2), 7))

class Void(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        return source.image

class Undeclared(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        return Image.new("RGB", source.image.size)

class InPlace(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        source.image.paste((1, 2, 3), (0, 0, 1, 1))
        return turned(source.image, 2)

class Global(ImageStrategy):
    traits = Traits(random=True, keeps_size=True)
    def reject(self, source):
        return turned(source.image, random.randrange(15))

class Grey(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        return source.image.convert("L")

class Nothing(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        pass

class Raises(ImageStrategy):
    traits = FIXED
    def reject(self, source):
        raise LookupError("mine")

class Greedy(ImageStrategy):
    traits = Traits(random=False, keeps_size=True, needs_given=True)
    def reject(self, source):
        return turned(source.image, 2)

class Modest(ImageStrategy):
    traits = Traits(random=False, keeps_size=False)
    def reject(self, source):
        return source.given or Raises.reject(self, source)

class Half(PixelStrategy):
    traits = FIXED
    def corrupt(self, pixel_values, seed):
        return pixel_values / 2

class First_(PixelStrategy):
    traits = FIXED
    def corrupt(self, pixel_values, seed):
        return pixel_values.float()[:1, :1]

class Listed(PixelStrategy):
    traits = FIXED
    def corrupt(self, pixel_values, seed):
        return [0.0]

class Infinite(PixelStrategy):
    traits = FIXED
    def corrupt(self, pixel_values, seed):
        return pixel_values.float() / 0

class Made(ImageStrategy):
    traits = FIXED
    def __init__(self):
        pass
    def reject(self, source):
        pass
"""


@pytest.fixture
def false_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "false_images.py").write_text(FALSE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("false_images", None)


@pytest.mark.parametrize(
    ("strategy", "check", "wrong"),
    [
        ("Forgetful", "the same key", "two draws of the same key differ"),
        ("Forgetful", "once is once", "redraw is once, but another epoch gives another image"),
        ("Forgetful", "every mode", "mode 1 gives another image than the same one in RGB"),
        ("Drawn", "another key", "declared fixed, but another seed gives another image"),
        ("First", "another key", "twelve seeds draw one image"),
        ("Halved", "every size", r"declares that it keeps the size, but turned \(400"),
        ("Void", "void", "no effect on an image of 400 × 300 with detail"),
        ("Undeclared", "void", r"no effect on an image of \(9, 9\), but void_where is not decl"),
        ("InPlace", "nothing else", "the true image is changed in place"),
        ("Global", "nothing else", "the process's own random numbers are used"),
        ("Grey", "every size", "TrialError: .*'false_images:Grey' returned L, not an RGB image"),
        ("Nothing", "every size", "TrialError: .* returned NoneType, not an RGB image"),
        ("Raises", "every mode", "LookupError: mine"),
        (
            "Greedy",
            "what it lacks",
            "declared to need other inputs, but does not report that they are missing",
        ),
        ("Modest", "what it lacks", "LookupError: mine"),
        ("Grey", "what it lacks", "declared to need nothing, but fails without"),
        ("Half", "pixel values", "in bf16 becomes .* in torch.bfloat16"),
        (
            "First_",
            "pixel values",
            r"made \(1, 1, 48, 48\) of pixel values \(1, 3, 48, 48\)",
        ),
        ("Listed", "pixel values", r"made list of pixel values \(1, 3, 48, 48\)"),
        ("Infinite", "pixel values", "a pixel value is not finite"),
        ("Made", "it can be made", "TypeError: "),
    ],
)
def test_a_strategy_that_breaks_a_rule_fails_its_check(
    false_plugin: None, strategy: str, check: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check that finds it alone: all of them make an image of 17 million pixels each time.
    own = {name: made for name, made in CHECKS.items() if name.startswith(check)}
    monkeypatch.setattr("chip_core.data.rejected_images.conformance.CHECKS", own)
    (told,) = conformance(RejectedImageConfig(strategy=f"false_images:{strategy}")).values()
    assert re.search(wrong, str(told))


def test_every_check_is_made_though_others_fail(false_plugin: None) -> None:
    found = conformance(RejectedImageConfig(strategy="false_images:Raises"))
    assert list(found) == list(CHECKS)
    assert (
        found["every mode"] == "LookupError: mine" and found["pixel values of every shape"] is None
    )
