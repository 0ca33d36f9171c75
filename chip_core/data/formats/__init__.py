"""The formats of preference data, one per file; a data set's format is found by its columns."""

from __future__ import annotations

from chip_core.data.formats import jsonl, rlaif_v, rlhf_v, trl
from chip_core.data.formats.base import (
    CHOSEN_IMAGE_COLUMNS,
    ColumnKinds,
    Format,
    find_rejected_image,
)

#: Name -> format, in the order in which they are tried.
FORMATS = {entry.name: entry for entry in (rlhf_v.FORMAT, rlaif_v.FORMAT, jsonl.FORMAT, trl.FORMAT)}

__all__ = ["FORMATS", "ColumnKinds", "Format", "find_format", "find_rejected_image"]


def find_format(kinds: ColumnKinds) -> Format | None:
    """Return the format that columns fit; None if there is none."""
    # A chosen response's own image replaces the pair's.
    unprefixed = {
        name.removeprefix("chosen_"): kinds[name] for name in CHOSEN_IMAGE_COLUMNS if name in kinds
    }
    kinds = {**unprefixed, **kinds}
    return next((entry for entry in FORMATS.values() if entry.matches(kinds)), None)
