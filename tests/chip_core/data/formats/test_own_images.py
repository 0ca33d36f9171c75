"""Rows that give the chosen and the rejected response an image each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip_core.config.trial import DataConfig
from chip_core.data import identity
from chip_core.data.preferences import load_pairs
from chip_core.data.source import open_source
from chip_core.utils.errors import TrialError

TEXTS = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."}
ROW = {**TEXTS, "chosen_image": "red.png", "rejected_image": "blue.png"}
MESSAGES = {
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
    "chosen": [{"role": "assistant", "content": "A cat."}],
    "rejected": [{"role": "assistant", "content": "A dog."}],
}
RED, BLUE = (255, 0, 0), (0, 0, 255)


def write_source(folder: Path, *rows: dict[str, Any]) -> DataConfig:
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), name).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(source=str(file))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (ROW, "jsonl"),
        ({**TEXTS, "chosen_images": ["red.png"], "rejected_images": ["blue.png"]}, "trl"),
        ({**MESSAGES, "chosen_image": "red.png", "rejected_image": "blue.png"}, "trl"),
        (
            {"text": {"question": "What?", "chosen": "A cat.", "rejected": "A dog."},
             "chosen_image": "red.png", "rejected_image": "blue.png"},
            "rlhf-v",
        ),
        ({**ROW, "rejected": "A cat."}, "jsonl"),  # one response, two images
    ],
)  # fmt: skip
def test_each_response_has_its_own_image(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    data = write_source(tmp_path, row)
    (pair,) = load_pairs(data)
    assert open_source(data).format.name == name
    assert pair.own_image is not None and pair.rejected_image is not None
    assert pair.image.getpixel((0, 0)) == RED
    assert pair.own_image.getpixel((0, 0)) == pair.rejected_image.getpixel((0, 0)) == BLUE


def test_rows_without_own_images_have_one_for_both(tmp_path: Path) -> None:
    one = {**TEXTS, "image": "red.png", "rejected_image": "blue.png"}
    same = {**ROW, "rejected_image": "red.png"}
    pairs = load_pairs(write_source(tmp_path, one, same, ROW))
    assert [pair.own_image is None for pair in pairs] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected_image": "broken.png"}, "rejected image: "),
        ({"rejected_image": "none.png"}, "rejected image: "),
        ({"rejected_image": None}, "chosen_image without rejected_image, the other response's own"),
        ({"image": "red.png"}, "image and chosen_image: leave image out, or chosen_image"),
        (
            {"rejected": "A cat.", "rejected_image": "red.png"},
            "chosen and rejected are equal",
        ),
    ],
)
def test_a_row_that_is_no_preference_is_bad(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TrialError) as raised:
        load_pairs(write_source(tmp_path, ROW, {**ROW, **change}))
    assert f"1 of 2 rows are bad: {tmp_path / 'rows.jsonl'} line 2: {reason}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_both_images_are_in_the_identity(tmp_path: Path) -> None:
    data = write_source(tmp_path, ROW)
    known = [identity(data)]
    for name in ("red", "blue"):
        Image.new("RGB", (8, 8), "green").save(tmp_path / f"{name}.png")
        known.append(identity(data))
    assert len({one["images"] for one in known}) == 3
    # Such a row was bad once, and may have been skipped.
    assert known[0]["reading"] == 2
    assert "reading" not in identity(write_source(tmp_path, {**TEXTS, "image": "red.png"}))


def test_the_first_rows_say_whether_there_are_any(tmp_path: Path) -> None:
    one = {**TEXTS, "image": "red.png"}
    data = open_source(write_source(tmp_path, one, one, ROW))
    assert (data.has_separate_images(2), data.has_separate_images(3)) == (False, True)
    # as tables write a cell that is empty
    empty = {**one, "chosen_image": {"bytes": None, "path": None}}
    data = write_source(tmp_path, empty)
    assert not open_source(data).has_separate_images(1) and "reading" not in identity(data)
