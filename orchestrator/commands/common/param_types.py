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

from chip_core.utils.files import PathKind, expand_path, find_path_problem

#: Above any reasonable number of hours, seconds or money, and small enough not to overflow.
MAX_NUMBER = 1e9

_MAX_SHOWN_LENGTH = 300  # characters of a path

_INTEGER_PATTERN = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER_PATTERN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
#: Of one slash, too: then a folder named `s3:` is not what is meant either.
_URI_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class TextType(click.ParamType[Any]):
    """A text that is not empty and can be shown."""

    name = "text"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the text unchanged."""
        text = str(value)
        if not text.strip():
            self.fail(f"{_param_label(param)} is empty: give a value, or leave it out", param, ctx)
        if _has_control_characters(text):
            self.fail(f"{text!r} holds a control character: remove it", param, ctx)
        return text


class IntegerType(click.ParamType[Any]):
    """A whole number within bounds."""

    name = "integer"

    def __init__(self, low: int | None = None, high: int | None = None) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        if isinstance(value, int):
            return value  # a default
        if not _INTEGER_PATTERN.fullmatch(value.strip()):
            self.fail(f"'{value}' is not a whole number: write digits, such as 3", param, ctx)
        number = int(value)
        if self.low is not None and number < self.low:
            self.fail(f"{number} is too small: {self.low} or more", param, ctx)
        if self.high is not None and number > self.high:
            self.fail(f"{number} is too large: {self.high} at most", param, ctx)
        return number


def parse_integers(param_type: Any, value: Any, example: str, param: Any, ctx: Any) -> list[int]:
    """Parse a list of whole numbers, `0 1 2` or `0,1,2`; on an error fail as `param_type`."""
    parts = [part.strip() for part in re.split(r",|(?<=[^\s,])\s+(?=[^\s,])", str(value))]
    if not all(_INTEGER_PATTERN.fullmatch(part) for part in parts):
        param_type.fail(f"'{value}' is not a list of whole numbers: write {example}", param, ctx)
    return [int(part) for part in parts]


class FloatType(click.ParamType[Any]):
    """A finite number, from 0 or above 0."""

    name = "number"

    def __init__(self, *, is_positive: bool = False, high: float = MAX_NUMBER) -> None:
        self.is_positive, self.high = is_positive, high

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        if isinstance(value, float):
            return value  # a default
        number = parse_number(value)
        if number is None:
            self.fail(f"'{value}' is not a finite number: write one, such as 1.5", param, ctx)
        if number < 0 or (self.is_positive and number == 0):
            hint = "give one above 0" if self.is_positive else "0 or more"
            self.fail(f"{value} is too small: {hint}", param, ctx)
        if number > self.high:
            self.fail(f"{value} is too large: {self.high:,.0f} at most", param, ctx)
        return number


class SeedsType(click.ParamType[Any]):
    """Whole numbers: `0 1 2` or `0,1,2`."""

    name = "seeds"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return a list of seeds."""
        return parse_integers(self, value, "--seeds 0 1 2", param, ctx)


class OverrideType(click.ParamType[Any]):
    """A dotted key and its value, read as YAML."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return (key, value)."""
        from chip_core.recipes import parse_yaml

        key, separator, text = str(value).partition("=")
        if not separator or not key.strip():
            self.fail(f"'{value}' is not key=value: write --set optimizer.lr=1e-6", param, ctx)
        return key.strip(), parse_yaml(text, f"--set {key}")


class AmountType(click.ParamType[Any]):
    """A name and a number."""

    name = "name=number"

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return (name, number)."""
        key, separator, text = str(value).partition("=")
        number = parse_number(text)
        if not separator or number is None:
            self.fail(f"'{value}' is not name=number: write {self.example}", param, ctx)
        return key.strip(), number


class AddressType(TextType):
    """Where a running Ray cluster listens: `auto`, or HOST:PORT."""

    name = "address"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the address unchanged."""
        text = super().convert(value, param, ctx)
        host, separator, port = text.rpartition(":")
        is_host_port = bool(separator and host.strip("[]")) and re.fullmatch(r"[0-9]{1,5}", port)
        if "://" not in text and text != "auto" and not (is_host_port and 0 < int(port) < 65536):
            self.fail(f"'{text}' is not an address: write auto, or HOST:PORT", param, ctx)
        return text


def parse_number(text: str) -> float | None:
    """Parse a finite number; None for any other text."""
    if not _NUMBER_PATTERN.fullmatch(text.strip()):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


class PathType(click.ParamType[Any]):
    """A path on this machine.

    Args:
        kind: what may already be there.
        exists: whether it must.
        is_local: False if it may be on other machines; then only its text is checked.
        uri_hint: what to use for an address of a storage.
    """

    name = "path"

    def __init__(
        self,
        kind: PathKind = "any",
        *,
        exists: bool = False,
        is_local: bool = True,
        uri_hint: str = "write a path of this machine",
    ) -> None:
        self.kind, self.exists, self.is_local, self.uri_hint = kind, exists, is_local, uri_hint

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path, with the user's home in place of `~`."""
        text = os.fspath(value)
        if not text.strip():
            self.fail(f"{_param_label(param)} is empty: give a path, or leave it out", param, ctx)
        if _has_control_characters(text):
            self.fail(f"{text!r} holds a control character: rename it", param, ctx)
        if _URI_PATTERN.match(text):
            self.fail(f"'{_shorten(text)}' is an address, not a path: {self.uri_hint}", param, ctx)
        if not self.is_local:
            return Path(text)
        path = expand_path(text)
        problem = find_path_problem(path, self.kind, exists=self.exists)
        if problem is not None:
            self.fail(f"{_shorten(text)}: {problem}", param, ctx)
        return path


def _shorten(text: str) -> str:
    """Shorten a text for an error message of one line."""
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]}…"


def _param_label(param: Any) -> str:
    """Return the name of an option or an argument in the help."""
    if isinstance(param, click.Argument):
        return param.human_readable_name.upper()
    return str(param.opts[0]) if param is not None else "it"


def _has_control_characters(text: str) -> bool:
    """Return whether a text has control characters or invalid UTF-8."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
