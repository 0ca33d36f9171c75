"""Rows with image paths: `image` a path, `prompt` or `question`, `chosen`, `rejected`, `id`."""

from __future__ import annotations

from chip_core.data.formats.base import (
    Format,
    Kinds,
    Raw,
    first_image,
)
from chip_core.data.formats.trl import texts_of_columns
from chip_core.data.rows import ImageRef, PreferenceTexts

IMAGE_COLUMNS = ("image", "images", "image_path")


def _fits(kinds: Kinds) -> bool:
    asked = kinds.keys() & {"prompt", "question"}
    texts = {"chosen", "rejected"} <= kinds.keys()
    plain = all(kinds[name] == "string" for name in [*asked, "chosen", "rejected"] if name in kinds)
    if not (asked and texts and plain):
        return False
    # `images` next to `prompt` is TRL's.
    elsewhere = "prompt" not in kinds and bool(kinds.keys() & set(IMAGE_COLUMNS))
    return kinds.get("image") == "string" or elsewhere


def _texts(raw: Raw) -> PreferenceTexts:
    return texts_of_columns(raw, "prompt", "question")


def _image(raw: Raw) -> ImageRef:
    return first_image(raw, *IMAGE_COLUMNS)


FORMAT = Format(
    name="jsonl",
    wants="image (a path) or images, prompt or question, chosen, rejected",
    image_columns=IMAGE_COLUMNS,
    text_columns=("prompt", "question", "chosen", "rejected"),
    fits=_fits,
    texts=_texts,
    image=_image,
)
