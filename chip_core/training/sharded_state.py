"""Trained weights and AdamW's moments in shards, by torch's distributed checkpoint.

Each worker writes what it holds, as safetensors (so no pickle is read), and reads what it is going
to hold, on however many workers. What several hold (hybrid sharding) one of them writes.
Names: `model.PARAMETER` and `optimizer.PARAMETER.ENTRY`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from chip_core.models.shards import is_dtensor
from chip_core.training.optimizer.int8_states import get_optimizer_state, load_optimizer_state
from chip_core.utils.errors import UnfitError

#: Bytes of all workers' tensors that go into one file each: while it is written, a worker holds
#: its part of them twice.
FILE_BYTES = 2**30


class _Writer(HuggingFaceStorageWriter):
    """A writer that knows the names of its worker's own files."""

    def __init__(self, path: Path, file_indices: dict[str, int]) -> None:
        super().__init__(str(path), fqn_to_index_mapping=file_indices, save_distributed=True)
        self.names: list[str] = []

    def write_data(self, plan: Any, planner: Any) -> Any:
        results = super().write_data(plan, planner)
        self.names = sorted({result.storage_data.relative_path for result in results.wait()})
        return results


def save_shards(
    folder: Path, names: Mapping[str, nn.Parameter], *, optimizer: Any
) -> tuple[list[str], dict[str, Any]]:
    """Write what this worker holds of the trained weights and of the optimizer's state.

    Where others hold the same, DCP has each part written once, and the workers share that.

    All workers come here together.

    Args:
        folder: where all write; it is made.
        names: what the optimizer updates, sharded, by the weights' names and in its order.
        optimizer: of `make_optimizer`.

    Returns:
        the names of this worker's files, none where others write all of it; and what else the
        optimizer's state has: settings, counts.

    Raises:
        Exception: what any worker failed by.
    """
    state = get_optimizer_state(optimizer)
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in names.items()}
    other_entries: dict[int, dict[str, Any]] = {}
    for index, (name, parameter) in enumerate(names.items()):
        for entry, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and (is_dtensor(value) or value.shape == parameter.shape):
                tensors[f"optimizer.{name}.{entry}"] = value
            else:
                other_entries.setdefault(index, {})[entry] = value
    writer = _Writer(folder, _assign_files(tensors))
    with _unwrap_dcp_errors():
        save(tensors, storage_writer=writer)
    return writer.names, {**state, "state": other_entries}


def load_shards(
    folder: Path, names: Mapping[str, nn.Parameter], *, optimizer: Any, state: Mapping[str, Any]
) -> None:
    """Put a checkpoint's shards into a model and its optimizer, sharded or not.

    All workers come here together.

    Args:
        folder: of all shards.
        names: as for `save_shards`; they take what was saved.
        optimizer: over them.
        state: what `save_shards` returned beside.

    Raises:
        UnfitError: they do not fit; model and optimizer are as they were.
    """
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    targets: dict[str, Tensor] = {f"model.{name}": value for name, value in names.items()}
    entries_by_index: dict[int, dict[str, Any]] = {}
    for index, (name, parameter) in enumerate(names.items()):
        entries_by_index[index] = dict(state["state"].get(index, {}))
        prefix = f"optimizer.{name}."
        for key in saved:
            entry = key.removeprefix(prefix)
            if key.startswith(prefix) and "." not in entry:
                entries_by_index[index][entry] = targets[key] = _allocate(saved[key], parameter)
    mismatched = [key for key, value in targets.items() if not _is_complete(saved.get(key), value)]
    if mismatched:
        raise UnfitError(
            f"{folder.name} lacks {len(mismatched)} of {len(targets)} tensors, or has them in "
            "other "
            f"shapes ({mismatched[0]}, …)"
        )
    with torch.no_grad(), _unwrap_dcp_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # alone
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder)))
    nonempty = {index: entries for index, entries in entries_by_index.items() if entries}
    load_optimizer_state(optimizer, {**state, "state": nonempty})


@contextmanager
def _unwrap_dcp_errors() -> Iterator[None]:
    """Raise what a worker failed by: DCP's own exception holds it, and is no `Exception`."""
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from None


def _allocate(metadata: Any, parameter: Tensor) -> Tensor:
    """Return a tensor for what was saved, spread as a parameter is."""
    meta_tensor = torch.empty(metadata.size, dtype=metadata.properties.dtype, device="meta")
    if not is_dtensor(parameter):
        return torch.zeros_like(meta_tensor, device=parameter.device)
    from torch.distributed.tensor import zeros

    dtensor: Any = parameter
    mesh, placements = dtensor.device_mesh, dtensor.placements
    return zeros(
        meta_tensor.shape, dtype=meta_tensor.dtype, device_mesh=mesh, placements=placements
    )


def _assign_files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return into which file each tensor's shards go, alike for all workers."""
    file_indices, total_bytes = {}, 0
    for name, value in tensors.items():
        file_indices[name] = 1 + total_bytes // FILE_BYTES
        total_bytes += value.numel() * value.element_size()
    # Numbers have no gaps: DCP names files after the greatest.
    ranks = {
        file_index: rank
        for rank, file_index in enumerate(sorted(set(file_indices.values())), start=1)
    }
    return {name: ranks[file_index] for name, file_index in file_indices.items()}


def _is_complete(metadata: Any, target: Tensor) -> bool:
    """Return whether a tensor's shards are there, all of them."""
    if metadata is None or metadata.size != target.shape:
        return False
    stored: int = sum(chunk.sizes.numel() for chunk in metadata.chunks)
    return stored == target.numel()
