"""Spell names and texts as MLflow accepts them.

MLflow rejects a whole request for one name with invalid characters, a path or too great a length.
A valid name is kept. Any other becomes a readable name with a unique hash, so that two names never
become one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

_MARK_DIGITS = 16
_MARKED = re.compile(rf"(?s:.*)--[0-9a-f]{{{_MARK_DIGITS}}}")
#: Characters that a database or its driver rejects: NUL and surrogates.
_NOT_IN_A_TEXT = re.compile("[\0\ud800-\udfff]")
_NOT_IN_A_KEY = re.compile(r"[^\w./: -]+")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What MLflow accepts for one kind of text."""

    longest: int  # characters
    key: bool = False  # whether its characters are restricted and it must not be a path outside
    empty: bool = False  # whether it may be empty


#: Names of metrics, params and tags.
KEY = Kind(longest=250, key=True)
#: A run's name is shorter than other tags, since it has its own column.
RUN = Kind(longest=250)
EXPERIMENT = Kind(longest=256)
PARAM = Kind(longest=6000, empty=True)
TAG = Kind(longest=8000, empty=True)


def spelled(name: str, kind: Kind = KEY) -> str:
    """Return a name as MLflow accepts it: unchanged if it is valid.

    Two names are never spelled alike: a changed name ends in a hash of the whole name, and so does
    any name that ends like one.
    """
    if _fits(name, kind) and not _MARKED.fullmatch(name):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_MARK_DIGITS]
    readable = _as_key(name) if kind.key else _NOT_IN_A_TEXT.sub("\N{REPLACEMENT CHARACTER}", name)
    return f"{readable[: kind.longest - len(mark) - 2]}--{mark}"


def respelled(names: Iterable[str], kind: Kind = KEY) -> dict[str, str]:
    """Return name -> spelling of the names that MLflow does not accept, in order."""
    return {name: other for name in names if (other := spelled(name, kind)) != name}


def _fits(name: str, kind: Kind) -> bool:
    if len(name) > kind.longest or not (name or kind.empty):
        return False
    if not kind.key:
        return not _NOT_IN_A_TEXT.search(name)
    return _as_key(name) == name


def _as_key(name: str) -> str:
    """Replace characters and parts of a path that a key may not have."""
    steps = _NOT_IN_A_KEY.sub("_", name).split("/")
    steps = ["_" if step in ("", ".", "..") else step for step in steps]
    if steps[0].startswith(".."):  # MLflow takes it for a path upwards
        steps[0] = "_" + steps[0].lstrip(".")
    return "/".join(steps)
