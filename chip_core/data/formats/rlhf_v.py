"""RLHF-V: `image` {bytes, path}, `text` a JSON string {question, chosen, rejected}, `idx`."""

from __future__ import annotations

import json

from chip_core.data.formats.base import (
    Format,
    Kinds,
    Raw,
    image_cell,
    own_id,
    prompt_text,
    text_cell,
)
from chip_core.data.rows import ImageRef, RowError, Texts


def _fits(kinds: Kinds) -> bool:
    return {"text", "image"} <= kinds.keys() and "chosen" not in kinds


def _texts(raw: Raw) -> Texts:
    try:
        said = json.loads(text_cell(raw, "text"))
    except json.JSONDecodeError as error:
        raise RowError(f"text is not JSON ({error.msg} at character {error.pos})") from None
    except (ValueError, RecursionError):  # a number of 5,000 digits, for one
        raise RowError("text is not JSON (too deep, or a number too long)") from None
    if not isinstance(said, dict):
        raise RowError("text is no JSON object of question, chosen, rejected")
    return Texts(
        id=own_id(raw),
        prompt=prompt_text(text_cell(said, "question")),
        chosen=text_cell(said, "chosen"),
        rejected=text_cell(said, "rejected"),
    )


def image(raw: Raw) -> ImageRef:
    """Return the image: `image`, and where it names none the path in `image_path`."""
    ref = image_cell(raw, "image")
    if ref == ImageRef() and isinstance(raw.get("image_path"), str):
        return image_cell(raw, "image_path")
    return ref


FORMAT = Format(
    name="rlhf-v",
    wants="image, text (JSON: question, chosen, rejected)",
    image_columns=("image", "image_path"),
    fits=_fits,
    texts=_texts,
    image=image,
)
