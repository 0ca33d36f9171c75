"""RLAIF-V: `image` {bytes, path}; `question`, `chosen`, `rejected` are columns; `idx` a string."""

from __future__ import annotations

from chip_core.data.formats.base import Format, Kinds, Raw
from chip_core.data.formats.rlhf_v import IMAGE_COLUMNS, image
from chip_core.data.formats.trl import texts_of_columns
from chip_core.data.rows import PreferenceTexts


def _fits(kinds: Kinds) -> bool:
    wanted = {"image", "question", "chosen", "rejected"}
    return wanted <= kinds.keys() and kinds["image"] in ("struct", "binary")


def _texts(raw: Raw) -> PreferenceTexts:
    return texts_of_columns(raw, "question")


FORMAT = Format(
    name="rlaif-v",
    wants="image ({bytes, path}), question, chosen, rejected",
    image_columns=IMAGE_COLUMNS,
    text_columns=("question", "chosen", "rejected"),
    fits=_fits,
    texts=_texts,
    image=image,
)
