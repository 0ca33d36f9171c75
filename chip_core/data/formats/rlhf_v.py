"""RLHF-V: `image` {bytes, path}, `text` {question, chosen, rejected} or that as JSON, `idx`."""

from __future__ import annotations

from datetime import date, time

from chip_core.data.formats.base import (
    ColumnKinds,
    Format,
    RawRow,
    find_first_image,
    make_time_error,
    parse_json_cell,
    read_image_cell,
    read_row_id,
    read_text_cell,
    strip_image_placeholder,
)
from chip_core.data.rows import ImageRef, PreferenceTexts, RowError

IMAGE_COLUMNS = ("image", "images", "image_path")


def _matches(kinds: ColumnKinds) -> bool:
    return "text" in kinds and bool(kinds.keys() & set(IMAGE_COLUMNS)) and "chosen" not in kinds


def _parse_texts(raw: RawRow) -> PreferenceTexts:
    cell = raw.get("text")
    if cell is None:
        raise RowError("no text")
    if isinstance(cell, date | time):
        raise make_time_error("text")
    is_json_text = isinstance(cell, str)
    if isinstance(cell, str):
        cell = parse_json_cell(cell, "text")
    if isinstance(cell, str):  # it was encoded as JSON twice
        is_json_text, cell = False, parse_json_cell(cell, "text")
    if not isinstance(cell, dict):
        raise RowError("text is not a JSON object of question, chosen, rejected")
    return PreferenceTexts(
        id=read_row_id(raw),
        prompt=strip_image_placeholder(read_text_cell(cell, "question")),
        chosen=read_text_cell(cell, "chosen"),
        rejected=read_text_cell(cell, "rejected"),
        read_differently=not is_json_text,
    )


def parse_image(raw: RawRow) -> ImageRef:
    """Return the image in `image` or `images`, or the path in `image_path` if they have none."""
    ref = find_first_image(raw, "image", "images")
    if ref == ImageRef() and isinstance(raw.get("image_path"), str):
        return read_image_cell(raw, "image_path")
    return ref


FORMAT = Format(
    name="rlhf-v",
    description="image, text (JSON or an object: question, chosen, rejected)",
    image_columns=IMAGE_COLUMNS,
    text_columns=("text",),
    matches=_matches,
    parse_texts=_parse_texts,
    parse_image=parse_image,
)
