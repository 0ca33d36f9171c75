"""Spell names and texts as MLflow takes them.

MLflow refuses a whole request for one name in it: by its signs, as a path, or for its length. What
it takes stays as it is. Anything else gets a name that can be read and a mark that no other name
has, so that two names never become one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

_MARK_DIGITS = 16
_MARKED = re.compile(rf"(?s:.*)--[0-9a-f]{{{_MARK_DIGITS}}}")
#: Signs of a text that a database or its driver refuses: NUL, and halves of a sign.
_NOT_IN_A_TEXT = re.compile("[\0\ud800-\udfff]")
_NOT_IN_A_KEY = re.compile(r"[^\w./: -]+")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What MLflow takes in one place."""

    longest: int  # characters
    key: bool = False  # whether it must be made of certain signs, and be no path to elsewhere
    empty: bool = False  # whether it may be


#: Of metrics, params and tags.
KEY = Kind(longest=250, key=True)
#: A run's name: shorter than a tag may be, since it has a column of its own.
RUN = Kind(longest=250)
EXPERIMENT = Kind(longest=256)
PARAM = Kind(longest=6000, empty=True)
TAG = Kind(longest=8000, empty=True)


def spelled(name: str, kind: Kind = KEY) -> str:
    """Return a name as MLflow takes it: the name itself where it does.

    Two names are never spelled alike: what is changed ends in a mark made of the whole name, and a
    name that ends like one is marked too.
    """
    if _fits(name, kind) and not _MARKED.fullmatch(name):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_MARK_DIGITS]
    readable = _as_key(name) if kind.key else _NOT_IN_A_TEXT.sub("\N{REPLACEMENT CHARACTER}", name)
    return f"{readable[: kind.longest - len(mark) - 2]}--{mark}"


def respelled(names: Iterable[str], kind: Kind = KEY) -> dict[str, str]:
    """Return how the names are spelled that MLflow does not take, in order."""
    return {name: other for name in names if (other := spelled(name, kind)) != name}


def _fits(name: str, kind: Kind) -> bool:
    if len(name) > kind.longest or not (name or kind.empty):
        return False
    if not kind.key:
        return not _NOT_IN_A_TEXT.search(name)
    return _as_key(name) == name


def _as_key(name: str) -> str:
    """Return a name with signs and steps of a path replaced that a key may not have."""
    steps = _NOT_IN_A_KEY.sub("_", name).split("/")
    steps = ["_" if step in ("", ".", "..") else step for step in steps]
    if steps[0].startswith(".."):  # taken for a path upwards
        steps[0] = "_" + steps[0].lstrip(".")
    return "/".join(steps)
