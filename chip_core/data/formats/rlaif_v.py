"""RLAIF-V: `image` {bytes, path}; `question`, `chosen`, `rejected` are columns; `idx` a string."""

from __future__ import annotations

from chip_core.data.formats.base import ColumnKinds, Format, RawRow
from chip_core.data.formats.rlhf_v import IMAGE_COLUMNS, parse_image
from chip_core.data.formats.trl import parse_text_columns
from chip_core.data.rows import PreferenceTexts


def _matches(kinds: ColumnKinds) -> bool:
    required = {"image", "question", "chosen", "rejected"}
    return required <= kinds.keys() and kinds["image"] in ("struct", "binary")


def _parse_texts(raw: RawRow) -> PreferenceTexts:
    return parse_text_columns(raw, "question")


FORMAT = Format(
    name="rlaif-v",
    description="image ({bytes, path}), question, chosen, rejected",
    image_columns=IMAGE_COLUMNS,
    text_columns=("question", "chosen", "rejected"),
    matches=_matches,
    parse_texts=_parse_texts,
    parse_image=parse_image,
)
