"""Keep the base model that a process loaded last, for the next trial of the same process.

A trial gets a copy with its own modules, so that no adapter, hook or setting of one trial affects
the next. Weights that the trial does not train are shared with the kept copy, since nothing writes
to them: on a GPU they stay there. Weights that it trains are mapped from a file again for each
trial: a page of them is copied when the trial first writes to it, and the kept ones are unchanged.
So a second load copies almost no weights, and a GPU holds no more than for a single trial.

The file is the model's own if it stores the weights in the dtype in use: then all processes of the
machine that load it share its pages, and a process holds only what it has changed. If the weights
were converted, for example from bf16 to fp32, it is a file in this process's memory: while they are
trained, the process holds them twice.

A file is mapped privately: all readers share a page, and a writer gets its own copy of it.
"""

from __future__ import annotations

import copy
import mmap
import os
import re
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.models.parts import select_trained_parameters
from chip_core.utils.machine import total_memory

#: Bytes. torch's own allocations start at a multiple of it. Some kernels add unaligned weights in
#: another order, which changes the last digit of figures.
_ALIGNMENT = 64
#: A line of /proc/self/maps: the address range of a mapped file, its offset in the file, and the
#: path.
_REGION_PATTERN = re.compile(r"(\w+)-(\w+) r\S* (\w+) \S+ [1-9]\d* +(/.*)")
_MAPS_FILE = Path("/proc/self/maps")


@dataclass(frozen=True, kw_only=True)
class _FileLocation:
    file: str
    offset: int  # in bytes


class MappedWeights:
    """The files and offsets that a model's weights are mapped from."""

    def __init__(self, model: nn.Module) -> None:
        """Find the weights that are mapped from the files that they were loaded from."""
        weights = dict(model.named_parameters())
        self._locations = {
            name: location for name, location in _find_locations(weights) if location is not None
        }

    def fresh_copies(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return fresh copies of weights as loaded, on the CPU; writes stay in the copies.

        Weights without a file are first moved to one in this process's memory. The given weights
        are then in that file, too.

        Args:
            weights: weights of the model, by name; nobody has written to them.
        """
        self._move_to_memory_file(
            {name: weight for name, weight in weights.items() if name not in self._locations}
        )
        for name, mapped in self._map_weights(weights).items():
            if weights[name].is_cuda:  # frozen in an earlier trial
                weights[name].data = mapped
        return {
            name: nn.Parameter(data, requires_grad=weights[name].requires_grad)
            for name, data in self._map_weights(weights).items()
        }

    def _map_weights(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return weights in a new mapping; copies if there is no file."""
        files: dict[str, mmap.mmap] = {}
        mapped = {}
        for name, weight in weights.items():
            location = self._locations.get(name)
            if location is None:
                mapped[name] = weight.detach().to("cpu", copy=True)
                continue
            if location.file not in files:
                with open(location.file, "rb") as opened:
                    files[location.file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            mapped[name] = _view_as_tensor(files[location.file], location.offset, weight)
        return mapped

    def _move_to_memory_file(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Move weights into a file in memory, one at a time, so that none is held twice."""
        weights = {name: weight for name, weight in weights.items() if weight.is_contiguous()}
        offsets, size = {}, 0
        for name, weight in weights.items():
            offsets[name] = size
            size += -(-_count_bytes(weight) // _ALIGNMENT) * _ALIGNMENT
        if size == 0 or not hasattr(os, "memfd_create"):
            return
        descriptor = os.memfd_create("weights")
        weakref.finalize(self, os.close, descriptor)
        os.truncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        for name, weight in weights.items():
            if weight.numel() > 0:
                weight.data = _view_as_tensor(memory, offsets[name], weight).copy_(weight.data)
                file = f"/proc/self/fd/{descriptor}"
                self._locations[name] = _FileLocation(file=file, offset=offsets[name])


def _find_locations(
    weights: Mapping[str, nn.Parameter],
) -> Iterable[tuple[str, _FileLocation | None]]:
    """Yield (name, place in the file) for each mapped weight; None if it is unaligned."""
    if not _MAPS_FILE.exists():
        return
    matches = [_REGION_PATTERN.fullmatch(line) for line in _MAPS_FILE.read_text().splitlines()]
    regions = [
        (int(begin, 16), int(end, 16), int(offset, 16), file)
        for begin, end, offset, file in (region.groups() for region in matches if region)
    ]
    for name, weight in weights.items():
        address = weight.data_ptr()
        for begin, end, offset, file in regions:
            if begin <= address < address + _count_bytes(weight) <= end and weight.is_contiguous():
                file_offset = offset + address - begin
                is_aligned = file_offset % weight.element_size() == 0
                yield name, _FileLocation(file=file, offset=file_offset) if is_aligned else None


def _view_as_tensor(memory: mmap.mmap, offset: int, weight: Tensor) -> Tensor:
    """Return a part of mapped memory as a tensor like a weight, on the CPU."""
    flat: Any = torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel(), offset=offset)
    view: Tensor = flat.view(weight.shape)
    return view


def _count_bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


#: A model larger than this share of the machine's memory is not kept.
_MAX_MEMORY_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class _KeptModel:
    key: Hashable  # the weights and how they were loaded
    model: Any
    processor: Any
    mapped: MappedWeights


class BaseModelCache:
    """The base model that was loaded last, if it is kept."""

    def __init__(self) -> None:
        """Keep nothing until `enable` is called."""
        self.is_enabled = False
        self._kept: _KeptModel | None = None

    def enable(self) -> None:
        """Keep the base model that is loaded next, for everything that this process runs."""
        self.is_enabled = True

    def disable(self) -> None:
        """Drop the kept model and keep none."""
        self.is_enabled, self._kept = False, None

    def move_off_gpu(self) -> None:
        """Move the kept model off the GPU."""
        if self._kept is not None:
            self._kept.model.to("cpu")

    def get(
        self, key: Hashable, load: Callable[[], tuple[Any, Any]], config: TrialConfig | None
    ) -> tuple[Any, Any]:
        """Return a base model and its processor, loaded or copied from the kept ones.

        Call it only while keeping is enabled.

        Args:
            key: equal for equal weights that are loaded in the same way.
            load: loads them.
            config: the trial that will train the model; None: nobody writes to it.
        """
        if self._kept is None or self._kept.key != key:
            self._kept = None  # never hold two
            model, processor = load()
            if _count_model_bytes(model) > _MAX_MEMORY_SHARE * total_memory():
                return model, processor
            mapped = MappedWeights(model)
            self._kept = _KeptModel(key=key, model=model, processor=processor, mapped=mapped)
        model, mapped = self._kept.model, self._kept.mapped
        trained = {} if config is None else select_trained_parameters(model, config)
        trained_weights = {
            name: weight for weights in trained.values() for name, weight in weights.items()
        }
        copies: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
        copies |= {
            id(trained_weights[name]): weight
            for name, weight in mapped.fresh_copies(trained_weights).items()
        }
        return copy.deepcopy(model, copies), copy.deepcopy(self._kept.processor)


def _count_model_bytes(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


#: The instance of this process.
BASE_MODELS = BaseModelCache()
