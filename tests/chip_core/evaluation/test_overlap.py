"""Which images are the same picture."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageEnhance

from chip_core.evaluation.overlap import (
    compute_signature,
    find_shared_images,
    is_same_picture,
    parse_coco_number,
)
from chip_core.shapes.world import draw_scene, make_scene


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("COCO_val2014_000000310196.jpg", 310196),
        ("val2014/COCO_train2014_000000000009.jpg", 9),
        ("000000310196.jpg", 310196),  # as COCO 2017 names it
        ("images/000000310196.PNG", 310196),
        ("AMBER_1.jpg", None),
        ("310196.jpg", None),
        ("COCO_val2014_31.jpg", None),
    ],
)
def test_cocos_number(name: str, number: int | None) -> None:
    assert parse_coco_number(name) == number


def draw_photo(index: int) -> Image.Image:
    """Draw a larger picture with gradients, as photographs have them."""
    shown = draw_scene(make_scene("test", index)).resize((320, 240), Image.Resampling.BICUBIC)
    shade = Image.linear_gradient("L").rotate(37 * index).resize((320, 240)).convert("RGB")
    return Image.blend(shown, shade, 0.4)


def test_scaled_and_recompressed_copies_are_found_and_others_are_not() -> None:
    originals = [draw_photo(index) for index in range(12)]
    for place, original in enumerate(originals):
        held = io.BytesIO()
        original.resize((512, 384)).save(held, "JPEG", quality=60)
        copy = Image.open(held)
        found = [
            other
            for other, image in enumerate(originals)
            if is_same_picture(compute_signature(copy), compute_signature(image))
        ]
        assert found == [place]
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    white = Image.new("RGB", (64, 64), (250, 250, 250))
    # In an even picture nothing is brighter than its neighbour.
    assert compute_signature(grey).bits == compute_signature(white).bits == 0
    # But they are not the same picture.
    assert not is_same_picture(compute_signature(grey), compute_signature(white))
    dark = ImageEnhance.Brightness(originals[0]).enhance(0.3)
    assert not is_same_picture(compute_signature(originals[0]), compute_signature(dark))


def test_shared_images_are_counted_by_number_and_by_content() -> None:
    def unread() -> Image.Image:
        raise AssertionError("its number says enough")

    shown = [
        ("COCO_val2014_000000000007.jpg", lambda: draw_photo(0)),
        ("b.png", lambda: draw_photo(1)),
    ]
    training = [
        ("COCO_train2014_000000000007.jpg", unread),
        ("copy.png", lambda: draw_photo(1).resize((100, 75))),
        ("other.png", lambda: draw_photo(2)),
        ("broken.png", lambda: None),
    ]
    assert find_shared_images(training, shown) == [
        ("COCO_train2014_000000000007.jpg", "COCO_val2014_000000000007.jpg"),
        ("copy.png", "b.png"),
    ]
    assert find_shared_images(training[2:], []) == []
