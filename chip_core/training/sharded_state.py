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
from chip_core.training.optimizer.int8_states import put_state, saved_state
from chip_core.utils.errors import UnfitError

#: Bytes of all workers' tensors that go into one file each: while it is written, a worker holds
#: its part of them twice.
FILE_BYTES = 2**30


class _Writer(HuggingFaceStorageWriter):
    """A writer that knows the names of its worker's own files."""

    def __init__(self, path: Path, numbers: dict[str, int]) -> None:
        super().__init__(str(path), fqn_to_index_mapping=numbers, save_distributed=True)
        self.names: list[str] = []

    def write_data(self, plan: Any, planner: Any) -> Any:
        written = super().write_data(plan, planner)
        self.names = sorted({each.storage_data.relative_path for each in written.wait()})
        return written


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
    state = saved_state(optimizer)
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in names.items()}
    rest: dict[int, dict[str, Any]] = {}
    for number, (name, parameter) in enumerate(names.items()):
        for entry, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and (is_dtensor(value) or value.shape == parameter.shape):
                tensors[f"optimizer.{name}.{entry}"] = value
            else:
                rest.setdefault(number, {})[entry] = value
    writer = _Writer(folder, _file_numbers(tensors))
    with _failing_as_it_did():
        save(tensors, storage_writer=writer)
    return writer.names, {**state, "state": rest}


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
    there = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Tensor] = {f"model.{name}": value for name, value in names.items()}
    own: dict[int, dict[str, Any]] = {}
    for number, (name, parameter) in enumerate(names.items()):
        own[number] = dict(state["state"].get(number, {}))
        prefix = f"optimizer.{name}."
        for key in there:
            entry = key.removeprefix(prefix)
            if key.startswith(prefix) and "." not in entry:
                own[number][entry] = wanted[key] = _empty(there[key], parameter)
    unfit = [key for key, value in wanted.items() if not _whole(there.get(key), value)]
    if unfit:
        raise UnfitError(
            f"{folder.name} lacks {len(unfit)} of {len(wanted)} tensors, or has them in other "
            f"shapes ({unfit[0]}, …)"
        )
    with torch.no_grad(), _failing_as_it_did(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # alone
        load(wanted, storage_reader=HuggingFaceStorageReader(str(folder)))
    filled = {number: entries for number, entries in own.items() if entries}
    put_state(optimizer, {**state, "state": filled})


@contextmanager
def _failing_as_it_did() -> Iterator[None]:
    """Raise what a worker failed by: DCP's own exception holds it, and is no `Exception`."""
    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from None


def _empty(found: Any, parameter: Tensor) -> Tensor:
    """Return a tensor for what was saved, spread as a parameter is."""
    whole = torch.empty(found.size, dtype=found.properties.dtype, device="meta")
    if not is_dtensor(parameter):
        return torch.zeros_like(whole, device=parameter.device)
    from torch.distributed.tensor import zeros

    spread: Any = parameter
    mesh, placements = spread.device_mesh, spread.placements
    return zeros(whole.shape, dtype=whole.dtype, device_mesh=mesh, placements=placements)


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return into which file each tensor's shards go, alike for all workers."""
    numbers, begun = {}, 0
    for name, value in tensors.items():
        numbers[name] = 1 + begun // FILE_BYTES
        begun += value.numel() * value.element_size()
    # Numbers have no gaps: DCP names files after the greatest.
    ranks = {number: rank for rank, number in enumerate(sorted(set(numbers.values())), start=1)}
    return {name: ranks[number] for name, number in numbers.items()}


def _whole(found: Any, wanted: Tensor) -> bool:
    """Return whether a tensor's shards are there, all of them."""
    if found is None or found.size != wanted.shape:
        return False
    held: int = sum(chunk.sizes.numel() for chunk in found.chunks)
    return held == wanted.numel()
