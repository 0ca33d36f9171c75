"""One row of a data set, between its file and the preference pair it becomes."""

from __future__ import annotations

from dataclasses import dataclass

from chip_core.utils.errors import to_printable

MAX_REASON_LENGTH = 300  # characters of a reason, which may quote the row


class RowError(ValueError):
    """A row that cannot become a preference pair. Its message is the reason, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(to_printable(" ".join(reason.split()), MAX_REASON_LENGTH))


@dataclass(frozen=True, kw_only=True)
class RowLocation:
    """The location of a row."""

    file: str
    row: int  # from 0; in a JSON-lines file the line, from 1
    unit: str = "row"

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.row}"


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that is not a preference pair, and the reason."""

    location: RowLocation
    reason: str

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """An image in a row: the file's bytes, or a path. Bytes take precedence."""

    data: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class PreferenceTexts:
    """The texts of a row."""

    id: str | None  # the row's own
    prompt: str
    chosen: str
    rejected: str
    #: Whether versions before 2026-11-28 read the row differently, or refused it
    #: (`DataSource.is_read_differently`).
    read_differently: bool = False


def check_texts(texts: PreferenceTexts, *, separate_images: bool = False) -> None:
    """Check that a row's texts are a preference.

    Args:
        texts: the row's.
        separate_images: whether each response has an image of its own: both may then have the
            same text.

    Raises:
        RowError: the first problem found.
    """
    _check_encoding("id", texts.id or "")  # draws for a sample use it
    for name in ("prompt", "chosen", "rejected"):
        check_text(name, getattr(texts, name))
    if not separate_images and texts.chosen.strip() == texts.rejected.strip():
        raise RowError("chosen and rejected are equal")


def check_text(name: str, text: str) -> None:
    """Check that a text of a row can be used for training.

    Raises:
        RowError: the first problem found.
    """
    if not text.strip():
        raise RowError(f"{name} is empty")
    if "\0" in text:
        raise RowError(f"{name} holds a null byte")
    _check_encoding(name, text)


def _check_encoding(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{name} is not UTF-8: a lone surrogate at {error.start}") from None


IMAGE_PLACEHOLDER = "<image>"
"""The mark for the image in many data sets' prompts; the chat template adds its own."""
