"""Prompts made of what is known are the processor's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from chip_core.evaluation.inference.encoder import Encoder
from chip_core.evaluation.inference.prompts import Prompt
from chip_core.evaluation.task import Item, Picture

from ... import families

EVERY = sorted(families.FAMILIES)
SIZES = [(64, 40), (30, 60), (50, 50), (64, 40), (30, 60), (50, 50), (64, 40), (96, 33)]
#: The third holds marks of some families, as words.
TEXTS = ["what is here ?", "a red dog and a cat on the tree ?", "<image> is </s> here <|im_end|> ?"]


def make_items(texts: Sequence[str] = TEXTS) -> list[Item]:
    """Make items on pictures of several sizes, none twice, with each text."""
    made = []
    for number, size in enumerate(SIZES):
        image = Image.new("RGB", size, (20 * number, 180, 90))
        ImageDraw.Draw(image).ellipse((5, 5, 20 + number, 25), fill=(20, 90, 220))
        shown = Picture(key=str(number), read=lambda image=image: image)  # type: ignore[misc]
        made += [
            Item(id=f"{number}/{place}", prompt=text, pictures=(shown,))
            for place, text in enumerate(texts)
        ]
    return made


def assert_same_prompt(one: Prompt, other: Prompt) -> None:
    assert (one.ids, one.token_types, one.vision_end) == (
        other.ids,
        other.token_types,
        other.vision_end,
    )
    assert one.item == other.item
    assert one.pictures.keys() == other.pictures.keys()
    for name, value in one.pictures.items():
        assert value.dtype == other.pictures[name].dtype
        assert torch.equal(value, other.pictures[name])


@pytest.mark.parametrize("together", [1, 3], ids=["alone", "a picture's together"])
@pytest.mark.parametrize("family", EVERY)
def test_every_familys_prompts_are_its_processors(
    family: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = families.build(family)
    plain, calls = Encoder._encode_fully, []

    def counted(self: Encoder, item: Item, pictures: Sequence[Any]) -> Prompt:
        calls.append(item.id)
        return plain(self, item, pictures)

    monkeypatch.setattr(Encoder, "_encode_fully", counted)
    encoder, asked = Encoder(processor), make_items()
    made = [
        prompt
        for start in range(0, len(asked), together)
        for prompt in encoder.encode(asked[start : start + together])
    ]
    # One a layout, and one to hold what is made against; Muffin's picture stands behind its text.
    assert len(calls) <= len(set(SIZES)) + 2 or family == "muffin"
    for item, prompt in zip(asked, made, strict=True):
        (whole,) = Encoder(processor).encode([item])
        assert_same_prompt(prompt, whole)


def test_what_is_not_the_processors_own_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image processor that makes something else alone, as one with settings of its own may."""
    _, processor = families.build("llava")
    whole = [Encoder(processor).encode([item])[0] for item in make_items()]
    plain = type(processor)._process_images

    def lighter(self: Any, images: Any, **settings: Any) -> Any:
        made, places = plain(self, images, **settings)
        made["pixel_values"] = [value + 1 for value in made["pixel_values"]]
        return made, places

    monkeypatch.setattr(type(processor), "_process_images", lighter)
    encoder = Encoder(processor)
    for item, prompt in zip(make_items(), whole, strict=True):
        (made,) = encoder.encode([item])
        assert torch.equal(made.pictures["pixel_values"], prompt.pictures["pixel_values"] + 1)
    assert encoder._can_process_alone is False
