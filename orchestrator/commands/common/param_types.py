"""Define the types of option values, which reject any other value.

Every option and argument has one of these types, a choice or a flag, which a test checks. Numbers
must be finite and in ASCII, texts must not be empty, and paths must be possible in the file system.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import click

from chip_core.utils.files import PathKind, expand_path, path_problem

#: Above any hours, seconds or money that are meant, below what arithmetic overflows at.
LARGEST = 1e9

_SHOWN = 300  # characters of a path

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
#: Of one slash, too: then a folder named `s3:` is not what is meant either.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class Text(click.ParamType[Any]):
    """A text that is not empty and can be shown."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the text unchanged."""
        text = str(value)
        if not text.strip():
            self.fail(f"{_label(param)} is empty: give a value, or leave it out", param, ctx)
        if _has_controls(text):
            self.fail(f"{text!r} holds a control character: remove it", param, ctx)
        return text


class Whole(click.ParamType[Any]):
    """A whole number within bounds."""

    name = "integer"

    def __init__(self, low: int | None = None, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        if isinstance(value, int):
            return value  # a default
        if not _WHOLE.fullmatch(value.strip()):
            self.fail(f"'{value}' is no whole number: write digits, such as 3", param, ctx)
        number = int(value)
        if self.low is not None and number < self.low:
            self.fail(f"{number} is too small: {self.low} or more", param, ctx)
        if self.high is not None and number > self.high:
            self.fail(f"{number} is too large: {self.high} at most", param, ctx)
        return number


def whole_numbers(kind: Any, value: Any, example: str, param: Any, ctx: Any) -> list[int]:
    """Parse a list of whole numbers, `0 1 2` or `0,1,2`; on an error fail as `kind`."""
    parts = [part.strip() for part in re.split(r",|(?<=[^\s,])\s+(?=[^\s,])", str(value))]
    if not all(_WHOLE.fullmatch(part) for part in parts):
        kind.fail(f"'{value}' is no list of whole numbers: write {example}", param, ctx)
    return [int(part) for part in parts]


class Real(click.ParamType[Any]):
    """A finite number, from 0 or above 0."""

    name = "number"

    def __init__(self, *, above_zero: bool = False, high: float = LARGEST) -> None:
        self.above_zero, self.high = above_zero, high

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        if isinstance(value, float):
            return value  # a default
        number = read_real(value)
        if number is None:
            self.fail(f"'{value}' is no finite number: write one, such as 1.5", param, ctx)
        if number < 0 or (self.above_zero and number == 0):
            least = "give one above 0" if self.above_zero else "0 or more"
            self.fail(f"{value} is too small: {least}", param, ctx)
        if number > self.high:
            self.fail(f"{value} is too large: {self.high:,.0f} at most", param, ctx)
        return number


class Address(Text):
    """Where a running Ray cluster listens: `auto`, or HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the address unchanged."""
        text = super().convert(value, param, ctx)
        host, colon, port = text.rpartition(":")
        known = bool(colon and host.strip("[]")) and re.fullmatch(r"[0-9]{1,5}", port)
        if "://" not in text and text != "auto" and not (known and 0 < int(port) < 65536):
            self.fail(f"'{text}' is no address: write auto, or HOST:PORT", param, ctx)
        return text


def read_real(text: str) -> float | None:
    """Parse a finite number; None for any other text."""
    if not _REAL.fullmatch(text.strip()):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


class Location(click.ParamType[Any]):
    """A path on this machine.

    Args:
        kind: what may lie there already.
        exists: whether it must.
        is_local: False for one that may be of other machines; then only its text is looked at.
        instead: what to use for an address of a storage.
    """

    name = "path"

    def __init__(
        self,
        kind: PathKind = "any",
        *,
        exists: bool = False,
        is_local: bool = True,
        instead: str = "write a path of this machine",
    ) -> None:
        self.kind, self.exists, self.is_local, self.instead = kind, exists, is_local, instead

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path, with the user's home in place of `~`."""
        text = os.fspath(value)
        if not text.strip():
            self.fail(f"{_label(param)} is empty: give a path, or leave it out", param, ctx)
        if _has_controls(text):
            self.fail(f"{text!r} holds a control character: rename it", param, ctx)
        if _ADDRESS.match(text):
            self.fail(f"'{_short(text)}' is an address, not a path: {self.instead}", param, ctx)
        if not self.is_local:
            return Path(text)
        path = expand_path(text)
        problem = path_problem(path, self.kind, exists=self.exists)
        if problem is not None:
            self.fail(f"{_short(text)}: {problem}", param, ctx)
        return path


def _short(text: str) -> str:
    """Shorten a text for an error message of one line."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _label(param: Any) -> str:
    """Return the name of an option or an argument in the help."""
    if isinstance(param, click.Argument):
        return param.human_readable_name.upper()
    return str(param.opts[0]) if param is not None else "it"


def _has_controls(text: str) -> bool:
    """Return whether a text has control characters or invalid UTF-8."""
    return any(unicodedata.category(sign) in ("Cc", "Cs") for sign in text)
