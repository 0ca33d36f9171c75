"""The interface of a format: its columns, and how a row's cells become texts and images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, time
from typing import Any

from chip_core.data.rows import IMAGE_PLACEHOLDER, ImageRef, PreferenceTexts, RowError

RawRow = Mapping[str, Any]
#: Column -> "string", "binary", "struct", "list" or "other".
ColumnKinds = Mapping[str, str]

REJECTED_IMAGE_COLUMNS = ("rejected_image", "rejected_images")
#: The chosen response's own image; the row's rejected image is then the rejected response's.
CHOSEN_IMAGE_COLUMNS = ("chosen_image", "chosen_images")
SECOND_IMAGE_COLUMNS = ("second_image", "second_images")


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to lay out preference pairs in columns."""

    name: str
    description: str  # the columns, for messages
    image_columns: tuple[str, ...]  # all columns that `parse_image` reads
    text_columns: tuple[str, ...]  # all columns that `parse_texts` reads
    matches: Callable[[ColumnKinds], bool]
    parse_texts: Callable[[RawRow], PreferenceTexts]
    parse_image: Callable[[RawRow], ImageRef]


def find_rejected_image(raw: RawRow) -> ImageRef | None:
    """Return a row's rejected image, in any format; None if there is none or the cell is empty."""
    for column in REJECTED_IMAGE_COLUMNS:
        ref = read_image_cell(raw, column)
        if ref != ImageRef():
            return ref
    return None


def read_text_cell(raw: RawRow, *columns: str) -> str:
    """Return the text of the first of the columns that exists."""
    for column in columns:
        value = raw.get(column)
        if value is None:
            continue
        if isinstance(value, date | time):
            raise make_time_error(column)
        if not isinstance(value, str):
            raise RowError(f"{column} is of type {type(value).__name__}, not text")
        return value
    raise RowError(f"no {' or '.join(columns)}")


def make_time_error(column: str) -> RowError:
    """Return the error for a text that was stored as a point in time."""
    return RowError(
        f"{column} is a date or a time, not text, and its original spelling is lost: store the "
        "column as text"
    )


def parse_json_cell(text: str, column: str) -> Any:
    """Return the value of a cell's JSON text.

    Raises:
        RowError: it is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RowError(f"{column} is not JSON ({error.msg} at character {error.pos})") from None
    except (ValueError, RecursionError):  # such as for a number of 5,000 digits
        raise RowError(f"{column} is not JSON (too deep, or a number too long)") from None


def strip_image_placeholder(text: str) -> str:
    """Return a prompt without its mark for the image; the chat template adds its own."""
    count = text.count(IMAGE_PLACEHOLDER)
    if count > 1:
        raise RowError(f"the prompt names {count} images: one image per pair is supported")
    return text.replace(IMAGE_PLACEHOLDER, "").strip() if count else text


def read_row_id(raw: RawRow) -> str | None:
    """Return the row's own id as text."""
    for column in ("id", "idx"):
        value = raw.get(column)
        if isinstance(value, bool) or (value is not None and not isinstance(value, str | int)):
            raise RowError(
                f"{column} is of type {type(value).__name__}, not text or a whole number"
            )
        if value is not None and str(value):
            return str(value)
    return None


def find_first_image(raw: RawRow, *columns: str) -> ImageRef:
    """Return the image of the first of the columns that has one."""
    return next(
        (ref for ref in (read_image_cell(raw, name) for name in columns) if ref != ImageRef()),
        ImageRef(),
    )


def read_image_cell(raw: RawRow, column: str) -> ImageRef:
    """Return the image in a column: bytes, a path, {bytes, path}, or a list of one of these."""
    value = raw.get(column)
    if isinstance(value, list):
        if len(value) > 1:
            raise RowError(f"{column} holds {len(value)} images: one image per pair is supported")
        value = value[0] if value else None
    if value is None:
        return ImageRef()
    if isinstance(value, bytes):
        return ImageRef(data=value)
    if isinstance(value, str):
        return ImageRef(path=value) if value else ImageRef()
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
        if (data is None or isinstance(data, bytes)) and (path is None or isinstance(path, str)):
            return ImageRef(data=data, path=path or None)
    raise RowError(
        f"{column} is of type {type(value).__name__}, not bytes, a path or {{bytes, path}}"
    )
