"""RLHF-V: `image` {bytes, path}, `text` {question, chosen, rejected} or that as JSON, `idx`."""

from __future__ import annotations

from datetime import date, time

from chip_core.data.formats.base import (
    Format,
    Kinds,
    Raw,
    first_image,
    image_cell,
    json_value,
    own_id,
    prompt_text,
    text_cell,
    time_error,
)
from chip_core.data.rows import ImageRef, PreferenceTexts, RowError

IMAGE_COLUMNS = ("image", "images", "image_path")


def _fits(kinds: Kinds) -> bool:
    return "text" in kinds and bool(kinds.keys() & set(IMAGE_COLUMNS)) and "chosen" not in kinds


def _texts(raw: Raw) -> PreferenceTexts:
    said = raw.get("text")
    if said is None:
        raise RowError("no text")
    if isinstance(said, date | time):
        raise time_error("text")
    plain = isinstance(said, str)
    if isinstance(said, str):
        said = json_value(said, "text")
    if isinstance(said, str):  # it was encoded as JSON twice
        plain, said = False, json_value(said, "text")
    if not isinstance(said, dict):
        raise RowError("text is no JSON object of question, chosen, rejected")
    return PreferenceTexts(
        id=own_id(raw),
        prompt=prompt_text(text_cell(said, "question")),
        chosen=text_cell(said, "chosen"),
        rejected=text_cell(said, "rejected"),
        anew=not plain,
    )


def image(raw: Raw) -> ImageRef:
    """Return the image in `image` or `images`, or the path in `image_path` if they have none."""
    ref = first_image(raw, "image", "images")
    if ref == ImageRef() and isinstance(raw.get("image_path"), str):
        return image_cell(raw, "image_path")
    return ref


FORMAT = Format(
    name="rlhf-v",
    wants="image, text (JSON or an object: question, chosen, rejected)",
    image_columns=IMAGE_COLUMNS,
    text_columns=("text",),
    fits=_fits,
    texts=_texts,
    image=image,
)
