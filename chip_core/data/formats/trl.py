"""TRL's preference format: `prompt`, `chosen`, `rejected` as messages or strings; `images`.

A message is {role, content}; its content is a string or a list of {type: image} and
{type: text, text}. Without `prompt`, `chosen` and `rejected` both begin with the same user message.
"""

from __future__ import annotations

from typing import Any

from chip_core.data.formats.base import Format, Kinds, Raw, image_cell, own_id, prompt_text
from chip_core.data.rows import ImageRef, RowError, Texts


def _fits(kinds: Kinds) -> bool:
    if not {"chosen", "rejected"} <= kinds.keys() or not kinds.keys() & {"images", "image"}:
        return False
    return "prompt" in kinds or kinds["chosen"] == "list"


def _texts(raw: Raw) -> Texts:
    prompt = raw.get("prompt")
    chosen, rejected = _conversation(raw, "chosen"), _conversation(raw, "rejected")
    if prompt is None:
        opening, other = chosen[:-1], rejected[:-1]
        if not opening or opening != other:
            raise RowError("no prompt, and chosen and rejected do not begin alike")
        chosen, rejected = chosen[-1:], rejected[-1:]
    else:
        opening = _conversation(raw, "prompt")
    return Texts(
        id=own_id(raw),
        prompt=prompt_text(_only(opening, "user", "prompt")),
        chosen=_only(chosen, "assistant", "chosen"),
        rejected=_only(rejected, "assistant", "rejected"),
    )


def _conversation(raw: Raw, column: str) -> list[tuple[str | None, str]]:
    """Return (role, text) of each message; a string has no role."""
    value = raw.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if isinstance(value, str):
        return [(None, value)]
    if not isinstance(value, list):
        raise RowError(f"{column} is of type {type(value).__name__}, not text or messages")
    messages = []
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"{column} holds a message without a role")
        messages.append((message["role"], _content(message.get("content"), column)))
    return messages


def _content(content: Any, column: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"{column} holds a message without content")
    texts, images = [], 0
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            images += 1
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise RowError(f"{column} holds a part of type {kind!r}: image and text are supported")
    if images > 1:
        raise RowError(f"{column} names {images} images: one image a pair is supported")
    if images and column in ("chosen", "rejected") and not texts:
        raise RowError(f"{column} holds an image and no text")
    return "".join(texts)


def _only(messages: list[tuple[str | None, str]], role: str, column: str) -> str:
    """Return the text of the one message of a role."""
    if len(messages) != 1 or messages[0][0] not in (role, None):
        roles = ", ".join(str(name) for name, _ in messages) or "none"
        raise RowError(f"{column} has messages of {roles}: one of {role} is supported")
    return messages[0][1]


def _image(raw: Raw) -> ImageRef:
    return image_cell(raw, "images" if raw.get("images") is not None else "image")


FORMAT = Format(
    name="trl",
    wants="prompt, chosen, rejected (messages or text), images or image",
    image_columns=("images", "image"),
    fits=_fits,
    texts=_texts,
    image=_image,
)
