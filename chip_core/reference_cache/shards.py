"""Store rows of different lengths in safetensors files: written by shard, read by row.

A row has groups of columns; the columns of a group ("chosen.ids", "chosen.logps") have one length,
which may differ between rows. In a shard a column is one tensor, with all its rows concatenated,
and `GROUP.offsets` has their starts. The files are memory-mapped for reading: they take no memory
of their own, and a store can be read even after it is removed.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chip_core.reference_cache.folder import (
    BrokenStoreError,
    record_file,
    shard_count,
    shard_name,
    shard_of,
    verify,
)
from chip_core.reference_cache.size import DiskSpaceError

CacheRow = Mapping[str, Tensor]


def write_shard(partial: Path, number: int, rows: Sequence[CacheRow]) -> None:
    """Write a shard into a partial folder, durably.

    Raises:
        DiskSpaceError: the disk is full.
    """
    columns: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        columns[name] = torch.cat(values).contiguous()
        group = name.partition(".")[0]
        lengths = torch.tensor([0, *map(len, values)], dtype=torch.int64)
        columns[f"{group}.offsets"] = lengths.cumsum(0)
    write_tensors(partial, shard_name(number), columns)


def write_tensors(partial: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors into a partial folder, durably.

    Raises:
        DiskSpaceError: the disk is full.
    """
    partial.mkdir(parents=True, exist_ok=True)
    try:
        save_file(dict(tensors), partial / name)
        record_file(partial, name)
    except (OSError, SafetensorError) as error:
        disk_full_codes = (errno.ENOSPC, errno.EDQUOT)
        code = getattr(error, "errno", None)
        if code in disk_full_codes or any(
            f"(os error {number})" in str(error) for number in disk_full_codes
        ):
            raise DiskSpaceError(
                f"the disk of {partial} is full: free some space, and run again"
            ) from None
        raise


class OpenedStore:
    """An open store, read by rows."""

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        """Check and open a store.

        Args:
            folder: the store's.
            identity: the expected one; None: any.

        Raises:
            BrokenStoreError: it is missing or incomplete, or has another identity.
        """
        self.folder = folder
        self.manifest = verify(folder, identity)
        try:  # all at once: a store removed later stays readable
            self._files: dict[str, Any] = {
                name: safe_open(folder / name, framework="pt") for name in self.manifest.files
            }
        except (OSError, SafetensorError) as error:
            raise BrokenStoreError(f"it cannot be opened ({error})") from None
        self._shards = [self._files[shard_name(number)] for number in range(shard_count(len(self)))]
        self._offsets = [
            {
                key.partition(".")[0]: shard.get_tensor(key).tolist()
                for key in shard.keys()  # noqa: SIM118  # it is not a mapping
                if key.endswith(".offsets")
            }
            for shard in self._shards
        ]

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def columns(self) -> list[str]:
        """The names of a row's columns."""
        names = self._shards[0].keys() if self._shards else []
        return sorted(name for name in names if not name.endswith(".offsets"))

    def row(self, index: int, column: str) -> Tensor:
        """Return a column of one row."""
        number, position = shard_of(index)
        offsets = self._offsets[number][column.partition(".")[0]]
        values: Tensor = self._shards[number].get_slice(column)[
            offsets[position] : offsets[position + 1]
        ]
        return values

    def rows(self, indices: Sequence[int], column: str) -> Tensor:
        """Return a column of several rows, concatenated."""
        return torch.cat([self.row(index, column) for index in indices])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return all tensors of a file."""
        file = self._files[name]
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
