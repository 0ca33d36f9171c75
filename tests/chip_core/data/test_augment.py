"""The released augmentation: a function of its seed, and each of its operations."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageChops

from chip_core.config.trial import TrialConfig
from chip_core.data.augment import OPERATIONS, augment_image
from chip_core.data.batches import PairBatch, PairEncoder
from chip_core.data.rejected_images.images import has_same_pixels
from chip_core.reference_cache.spec import list_cache_specs

from .. import families


def make_picture(width: int = 60, height: int = 40) -> Image.Image:
    """Make a picture: its left half red, its right half blue, one row white."""
    image = Image.new("RGB", (width, height), (200, 20, 20))
    image.paste((20, 20, 200), (width // 2, 0, width, height))
    image.paste((255, 255, 255), (0, 10, width, 11))
    return image


def test_a_draw_is_its_seed_s() -> None:
    image = make_picture()
    draws = [augment_image(image, (32, 32), seed) for seed in range(20)]
    assert all(draw.size == (32, 32) for draw in draws)
    assert all(
        has_same_pixels(augment_image(image, (32, 32), seed), draw)
        for seed, draw in enumerate(draws)
    )
    assert sum(not has_same_pixels(draws[0], draw) for draw in draws[1:]) == 19


def test_an_image_of_no_fixed_size_keeps_the_crops() -> None:
    sizes = [augment_image(make_picture(), None, seed).size for seed in range(30)]
    for width, height in sizes:
        assert 0.5 * 60 * 40 * 0.95 <= width * height <= 60 * 40
        assert 3 / 4 * 0.95 <= width / height <= 4 / 3 * 1.05
    assert len(set(sizes)) > 10


def test_what_is_too_long_for_any_crop_keeps_its_middle() -> None:
    # A crop of half its area, 3:4 to 4:3, is wider than 10 pixels: 10 x round(10 / 0.75) is left.
    assert augment_image(make_picture(10, 300), None, 0).size == (10, 13)
    assert augment_image(make_picture(300, 10), None, 0).size == (13, 10)


def test_each_operation_keeps_the_size_and_changes_the_image() -> None:
    image = make_picture()
    made = [operation(image, 1) for operation in OPERATIONS]
    assert len(made) == 10
    assert all(one.size == image.size and one.mode == "RGB" for one in made)
    assert [number for number, one in enumerate(made) if has_same_pixels(one, image)] == [0]
    brightness = made[3].getpixel((5, 30))
    assert brightness == (min(255, int(200 * 1.36)), int(20 * 1.36), int(20 * 1.36))
    right, left = OPERATIONS[7](image, -1), OPERATIONS[7](image, 1)
    # Shifted by 7 pixels; grey comes in.
    assert right.getpixel((36, 30)) == (200, 20, 20) and right.getpixel((38, 30)) == (20, 20, 200)
    assert right.getpixel((2, 30)) == (128, 128, 128)
    assert left.getpixel((22, 30)) == (200, 20, 20) and left.getpixel((24, 30)) == (20, 20, 200)
    assert left.getpixel((57, 30)) == (128, 128, 128)
    turned = [OPERATIONS[9](image, sign) for sign in (1, -1)]
    assert ImageChops.difference(*turned).getbbox() is not None


@pytest.fixture(scope="module")
def encoder() -> PairEncoder:
    return make_encoder(0)


def make_encoder(seed: int, augment: str = "released") -> PairEncoder:
    config = TrialConfig.model_validate(
        {
            "model": "x", "seed": seed, "rejected_image": "rotate",
            "training": {"augment": augment, "max_length": 256},
        }
    )  # fmt: skip
    return PairEncoder(families.build("muffin")[1], config, families.make_pairs())


def get_pixels(batch: PairBatch) -> torch.Tensor:
    return batch.prompts.inputs["pixel_values"]


def test_an_epoch_and_a_seed_have_their_own_draws(encoder: PairEncoder) -> None:
    one = encoder.encode_batch([0, 1, 2], 0)
    assert torch.equal(get_pixels(one), get_pixels(encoder.encode_batch([0, 1, 2], 0)))
    assert not torch.equal(get_pixels(one), get_pixels(encoder.encode_batch([0, 1, 2], 1)))
    assert not torch.equal(get_pixels(one), get_pixels(make_encoder(1).encode_batch([0, 1, 2], 0)))
    assert not torch.equal(
        get_pixels(one), get_pixels(make_encoder(0, "off").encode_batch([0, 1, 2], 0))
    )
    # The rejected image is made of what the model sees: it turns that.
    assert one.rejected_image_prompts is not None
    assert not torch.equal(get_pixels(one), one.rejected_image_prompts.inputs["pixel_values"])


def test_nothing_is_stored_of_what_is_seen_once() -> None:
    plain = TrialConfig.model_validate({"model": "shapes"})
    augment = TrialConfig.model_validate({"model": "shapes", "training": {"augment": "released"}})
    assert list_cache_specs(plain, {}, {})
    assert list_cache_specs(augment, {}, {}) == ()
