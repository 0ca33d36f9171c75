"""Whether a disk has room for a store."""

from __future__ import annotations

import shutil
from pathlib import Path

from chip_core.errors import TrialError


class NoRoomError(TrialError):
    """The disk has no room for a store. Its message says how much it takes."""


def check_room(cache: Path, needed: int, what: str) -> None:
    """Check that a disk has room.

    Args:
        cache: where stores lie.
        needed: bytes.
        what: is to be written, for people.

    Raises:
        NoRoomError: it has less.
    """
    above = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise NoRoomError(
            f"no room for {what}: {gigabytes(needed)} are needed in {cache}, {gigabytes(free)} "
            "are free: make room (`chip-ablate cache --prune`), or set reference_cache: off"
        )


def gigabytes(size: int) -> str:
    """Return a size as people read it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
