"""Encode names and texts as MLflow accepts them.

MLflow rejects a whole request for one name with invalid characters, a path or too great a length.
A valid name is kept. Any other becomes a readable name with a unique hash, so that two names never
become one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

_HASH_DIGITS = 16
_HASHED = re.compile(rf"(?s:.*)--[0-9a-f]{{{_HASH_DIGITS}}}")
#: Characters that a database or its driver rejects: NUL and surrogates.
_NOT_IN_A_TEXT = re.compile("[\0\ud800-\udfff]")
_NOT_IN_A_KEY = re.compile(r"[^\w./: -]+")


@dataclass(frozen=True, kw_only=True)
class TextKind:
    """What MLflow accepts for one kind of text."""

    max_length: int  # characters
    key: bool = False  # whether its characters are restricted and it must not be a path outside
    empty: bool = False  # whether it may be empty


#: Names of metrics, params and tags.
KEY = TextKind(max_length=250, key=True)
#: A run's name is shorter than other tags, since it has its own column.
RUN = TextKind(max_length=250)
EXPERIMENT = TextKind(max_length=256)
PARAM = TextKind(max_length=6000, empty=True)
TAG = TextKind(max_length=8000, empty=True)


def encode_name(name: str, kind: TextKind = KEY) -> str:
    """Return a name as MLflow accepts it: unchanged if it is valid.

    Two names are never encoded alike: a changed name ends in a hash of the whole name, and so does
    any name that ends like one.
    """
    readable = _to_key(name) if kind.key else _NOT_IN_A_TEXT.sub("\N{REPLACEMENT CHARACTER}", name)
    valid = readable == name and len(name) <= kind.max_length and (name or kind.empty)
    if valid and not _HASHED.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]
    return f"{readable[: kind.max_length - len(digest) - 2]}--{digest}"


def encode_invalid(names: Iterable[str], kind: TextKind = KEY) -> dict[str, str]:
    """Return name -> encoded name of the names that MLflow does not accept, in order."""
    return {name: new for name in names if (new := encode_name(name, kind)) != name}


def _to_key(name: str) -> str:
    """Replace characters and parts of a path that a key may not have."""
    parts = _NOT_IN_A_KEY.sub("_", name).split("/")
    parts = ["_" if part in ("", ".", "..") else part for part in parts]
    if parts[0].startswith(".."):  # MLflow takes it for a path upwards
        parts[0] = "_" + parts[0].lstrip(".")
    return "/".join(parts)
