"""TRL's preference format: `prompt`, `chosen`, `rejected` as messages or strings; `images`.

A message is {role, content}; its content is a string or a list of {type: image} and
{type: text, text}. A conversation may be written as JSON. If `chosen` and `rejected` are whole
conversations, they begin with the same user message, and `prompt` is that message or omitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, time
from typing import Any

from chip_core.data.formats.base import (
    ColumnKinds,
    Format,
    RawRow,
    find_first_image,
    make_time_error,
    parse_json_cell,
    read_row_id,
    read_text_cell,
    strip_image_placeholder,
)
from chip_core.data.rows import ImageRef, PreferenceTexts, RowError


@dataclass(frozen=True, kw_only=True)
class _Message:
    role: str | None  # None: the cell is a plain text
    text: str
    images: int


def _matches(kinds: ColumnKinds) -> bool:
    if not {"chosen", "rejected"} <= kinds.keys() or not kinds.keys() & {"images", "image"}:
        return False
    return bool(kinds.keys() & {"prompt", "question"}) or kinds["chosen"] == "list"


def parse_text_columns(raw: RawRow, *prompt: str) -> PreferenceTexts:
    """Return the texts of a row's columns, texts or messages.

    Args:
        raw: the row.
        prompt: columns of the prompt as text; the first that exists is used.
    """
    if is_conversation_json(raw.get("chosen")):
        return parse_messages(raw)
    return PreferenceTexts(
        id=read_row_id(raw),
        prompt=strip_image_placeholder(read_text_cell(raw, *prompt)),
        chosen=read_text_cell(raw, "chosen"),
        rejected=read_text_cell(raw, "rejected"),
    )


def parse_messages(raw: RawRow) -> PreferenceTexts:
    """Return the texts of a row's messages."""
    conversations = {name: _parse_conversation(raw, name) for name in ("chosen", "rejected")}
    chosen, rejected = (_drop_empty_system(messages) for messages in conversations.values())
    prompt_column = next(
        (name for name in ("prompt", "question") if raw.get(name) is not None), None
    )
    prompt_messages: list[_Message] | None = None
    if prompt_column is not None:
        prompt_conversation = _parse_conversation(raw, prompt_column)
        prompt_messages = _drop_empty_system(prompt_conversation)
        conversations[prompt_column] = prompt_conversation
    read_differently = any(
        isinstance(raw[name], str | dict) and messages[:1] != [_plain_message(raw[name])]
        for name, messages in conversations.items()
    ) or any(_drop_empty_system(messages) != messages for messages in conversations.values())
    if len(chosen) > 1 and len(rejected) > 1 and _shares_prompt(chosen, rejected, prompt_messages):
        # As in TRL: their common beginning is the prompt, whatever a separate prompt text says.
        read_differently = read_differently or prompt_column is not None
        prompt_messages, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    elif prompt_messages is not None and _questions_differ(chosen, rejected):
        raise RowError("chosen and rejected do not begin alike")
    elif prompt_messages is None:
        raise RowError("no prompt, and chosen and rejected do not begin alike")
    return PreferenceTexts(
        id=read_row_id(raw),
        prompt=strip_image_placeholder(
            _single_message_text(prompt_messages, "user", prompt_column or "prompt")
        ),
        chosen=_single_message_text(chosen, "assistant", "chosen"),
        rejected=_single_message_text(rejected, "assistant", "rejected"),
        read_differently=read_differently,
    )


def _shares_prompt(
    chosen: list[_Message], rejected: list[_Message], prompt_messages: list[_Message] | None
) -> bool:
    """Return whether both conversations begin alike, and with the prompt."""
    if chosen[:-1] != rejected[:-1]:
        return False
    has_roles = prompt_messages is not None and any(
        message.role is not None for message in prompt_messages
    )
    # A prompt given as messages must be their beginning, or there are more turns than one.
    return not has_roles or _role_texts(chosen[:-1]) == _role_texts(prompt_messages or [])


def _questions_differ(chosen: list[_Message], rejected: list[_Message]) -> bool:
    """Return whether both begin with a question, but with different ones."""
    first_roles = [messages[0].role for messages in (chosen, rejected) if len(messages) > 1]
    return first_roles == ["user", "user"] and chosen[:-1] != rejected[:-1]


def _role_texts(messages: list[_Message]) -> list[tuple[str | None, str]]:
    return [(message.role, message.text.strip()) for message in messages]


def _drop_empty_system(messages: list[_Message]) -> list[_Message]:
    """Return a conversation without an empty system message."""
    return [
        message
        for message in messages
        if message.role != "system" or message.text.strip() or message.images
    ]


def _plain_message(text: Any) -> _Message:
    return _Message(role=None, text=text, images=0)


def _parse_conversation(raw: RawRow, column: str) -> list[_Message]:
    """Return a column's messages."""
    value = raw.get(column)
    if value is None:
        raise RowError(f"no {column}")
    if isinstance(value, date | time):
        raise make_time_error(column)
    if isinstance(value, str):
        if not is_conversation_json(value):
            return [_plain_message(value)]
        value = parse_json_cell(value, column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"{column} is of type {type(value).__name__}, not text or messages")
    messages = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise RowError(f"{column} holds a message without a role")
        content = message.get("content")
        if content is None and role == "system":
            content = ""
        text, images = _parse_content(content, column)
        messages.append(_Message(role=role, text=text, images=images))
    return messages


def is_conversation_json(text: Any) -> bool:
    """Return whether a cell is a conversation as JSON, not a text that only begins like one."""
    if (
        not isinstance(text, str)
        or not text.lstrip().startswith(("[", "{"))
        or '"role"' not in text
    ):
        return False
    try:
        value = parse_json_cell(text, "")
    except RowError:
        return False
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages
    )


def _parse_content(content: Any, column: str) -> tuple[str, int]:
    """Return a message's text and how many images it names."""
    if isinstance(content, str):
        return content, 0
    if isinstance(content, date | time):
        raise make_time_error(column)
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise RowError(f"{column} holds a message without content")
    texts, images = [], 0
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image":
            images += 1
        elif kind == "text":
            text = part.get("text")
            if isinstance(text, date | time):
                raise make_time_error(column)
            if not isinstance(text, str):
                raise RowError(f"{column} holds a part of type 'text' without a text")
            texts.append(text)
        else:
            raise RowError(f"{column} holds a part of type {kind!r}: image and text are supported")
    if images > 1:
        raise RowError(f"{column} names {images} images: one image per pair is supported")
    return "".join(texts), images


def parse_response(raw: RawRow, column: str) -> str:
    """Return a response: a text, or a conversation of one message.

    Raises:
        RowError: it is neither.
    """
    return _single_message_text(_parse_conversation(raw, column), "assistant", column)


def _single_message_text(messages: list[_Message], role: str, column: str) -> str:
    """Return the text of the one message of a role."""
    if len(messages) != 1 or messages[0].role not in (role, None):
        roles = ", ".join(str(message.role) for message in messages) or "none"
        raise RowError(f"{column} has messages of {roles}: one of {role} is supported")
    (message,) = messages
    if role == "assistant" and message.images and not message.text:
        raise RowError(f"{column} holds an image and no text")
    return message.text


def _parse_image(raw: RawRow) -> ImageRef:
    return find_first_image(raw, "images", "image")


FORMAT = Format(
    name="trl",
    description="prompt, chosen, rejected (messages or text), images or image",
    image_columns=("images", "image"),
    text_columns=("prompt", "question", "chosen", "rejected"),
    matches=_matches,
    parse_texts=parse_messages,
    parse_image=_parse_image,
)
