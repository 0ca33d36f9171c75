"""Save and load trained weights and AdamW's moments in shards, with torch's distributed checkpoint.

Each worker writes its part as safetensors (so no pickle is read) and reads the part that it needs,
whatever the number of workers. A part held by several workers (hybrid sharding) is written by one
of them.
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

#: Bytes of all workers' tensors per file: while a file is written, a worker holds its part of them
#: twice.
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
    """Write this worker's part of the trained weights and of the optimizer's state.

    If several workers hold the same part, DCP writes it once and divides this work among them.

    All workers call this together.

    Args:
        folder: the folder in which all workers write; it is created.
        names: the sharded parameters that the optimizer updates, by weight name, in its order.
        optimizer: from `make_optimizer`.

    Returns:
        the names of this worker's files (none if others write everything), and the rest of the
        optimizer's state: settings, counts.

    Raises:
        Exception: the exception of any worker that failed.
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

    All workers call this together.

    Args:
        folder: the folder with all shards.
        names: as for `save_shards`; they get the saved values.
        optimizer: the optimizer of these parameters.
        state: the rest of the state that `save_shards` returned.

    Raises:
        UnfitError: they do not fit; model and optimizer are unchanged.
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
            f"other shapes ({mismatched[0]}, …)"
        )
    with torch.no_grad(), _unwrap_dcp_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # alone
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder)))
    nonempty = {index: entries for index, entries in entries_by_index.items() if entries}
    load_optimizer_state(optimizer, {**state, "state": nonempty})


@contextmanager
def _unwrap_dcp_errors() -> Iterator[None]:
    """Raise a worker's exception, which is inside DCP's own; that one is not an `Exception`."""
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from None


def _allocate(metadata: Any, parameter: Tensor) -> Tensor:
    """Return a tensor for a saved value, sharded like a parameter."""
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
    """Return the number of the file for each tensor's shards; it is the same for all workers."""
    file_indices, total_bytes = {}, 0
    for name, value in tensors.items():
        file_indices[name] = 1 + total_bytes // FILE_BYTES
        total_bytes += value.numel() * value.element_size()
    # Numbers have no gaps, because DCP names files after the largest one.
    ranks = {
        file_index: rank
        for rank, file_index in enumerate(sorted(set(file_indices.values())), start=1)
    }
    return {name: ranks[file_index] for name, file_index in file_indices.items()}


def _is_complete(metadata: Any, target: Tensor) -> bool:
    """Return whether all shards of a tensor exist."""
    if metadata is None or metadata.size != target.shape:
        return False
    stored: int = sum(chunk.sizes.numel() for chunk in metadata.chunks)
    return stored == target.numel()
