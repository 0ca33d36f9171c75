"""Rows with image paths: `image` a path, `prompt` or `question`, `chosen`, `rejected`, `id`."""

from __future__ import annotations

from chip_core.data.formats.base import (
    ColumnKinds,
    Format,
    RawRow,
    first_image,
)
from chip_core.data.formats.trl import parse_text_columns
from chip_core.data.rows import ImageRef, PreferenceTexts

IMAGE_COLUMNS = ("image", "images", "image_path")


def _matches(kinds: ColumnKinds) -> bool:
    prompt_columns = kinds.keys() & {"prompt", "question"}
    has_responses = {"chosen", "rejected"} <= kinds.keys()
    are_texts = all(
        kinds[name] == "string" for name in [*prompt_columns, "chosen", "rejected"] if name in kinds
    )
    if not (prompt_columns and has_responses and are_texts):
        return False
    # `images` next to `prompt` is TRL's.
    has_other_image = "prompt" not in kinds and bool(kinds.keys() & set(IMAGE_COLUMNS))
    return kinds.get("image") == "string" or has_other_image


def _parse_texts(raw: RawRow) -> PreferenceTexts:
    return parse_text_columns(raw, "prompt", "question")


def _parse_image(raw: RawRow) -> ImageRef:
    return first_image(raw, *IMAGE_COLUMNS)


FORMAT = Format(
    name="jsonl",
    description="image (a path) or images, prompt or question, chosen, rejected",
    image_columns=IMAGE_COLUMNS,
    text_columns=("prompt", "question", "chosen", "rejected"),
    matches=_matches,
    parse_texts=_parse_texts,
    parse_image=_parse_image,
)
