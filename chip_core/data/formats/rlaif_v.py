"""RLAIF-V: `image` {bytes, path}; `question`, `chosen`, `rejected` are columns; `idx` a string."""

from __future__ import annotations

from chip_core.data.formats.base import Format, Kinds, Raw, own_id, prompt_text, text_cell
from chip_core.data.formats.rlhf_v import IMAGE_COLUMNS, image
from chip_core.data.formats.trl import holds_messages, texts_of_messages
from chip_core.data.rows import PreferenceTexts


def _fits(kinds: Kinds) -> bool:
    wanted = {"image", "question", "chosen", "rejected"}
    return wanted <= kinds.keys() and kinds["image"] in ("struct", "binary")


def _texts(raw: Raw) -> PreferenceTexts:
    if holds_messages(raw.get("chosen")):
        return texts_of_messages(raw)
    return PreferenceTexts(
        id=own_id(raw),
        prompt=prompt_text(text_cell(raw, "question")),
        chosen=text_cell(raw, "chosen"),
        rejected=text_cell(raw, "rejected"),
    )


FORMAT = Format(
    name="rlaif-v",
    wants="image ({bytes, path}), question, chosen, rejected",
    image_columns=IMAGE_COLUMNS,
    text_columns=("question", "chosen", "rejected"),
    fits=_fits,
    texts=_texts,
    image=image,
)
