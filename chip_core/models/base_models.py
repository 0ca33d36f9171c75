"""Keep the base model that a process loaded last, for the next trial of the same process.

A trial gets a copy with its own modules, so that no adapter, hook or setting of one trial affects
the next. Weights that the trial does not train are shared with the kept copy, since nothing writes
to them: on a GPU they stay there. Weights that it trains are mapped from a file again for each
trial: a page of them is copied when the trial first writes to it, and the kept ones are unchanged.
So a second load copies almost no weights, and a GPU holds nothing that a single trial would not
hold.

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
from chip_core.models.parts import trained_parts
from chip_core.utils.machine import total_memory

#: Bytes. torch's own allocations begin at a multiple of it. Some kernels add in another order for
#: unaligned weights, so that figures differ in the last digit.
_ALIGNMENT = 64
#: A line of /proc/self/maps: the address range of a mapped file, its offset in the file, and the
#: path.
_REGION = re.compile(r"(\w+)-(\w+) r\S* (\w+) \S+ [1-9]\d* +(/.*)")
_REGIONS = Path("/proc/self/maps")


@dataclass(frozen=True, kw_only=True)
class _Place:
    file: str
    offset: int  # in bytes


class MappedWeights:
    """The files and offsets that a model's weights are mapped from."""

    def __init__(self, model: nn.Module) -> None:
        """Find the weights that are mapped from the files that they were loaded from."""
        weights = dict(model.named_parameters())
        self._places = {name: place for name, place in _places(weights) if place is not None}

    def again(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return fresh copies of weights as loaded, on the CPU; writes stay in the copies.

        Weights without a file are first moved to one in this process's memory. The given weights
        are then in that file, too.

        Args:
            weights: weights of the model, by name; nobody has written to them.
        """
        self._write({name: each for name, each in weights.items() if name not in self._places})
        for name, kept in self._mapped(weights).items():
            if weights[name].is_cuda:  # frozen in an earlier trial
                weights[name].data = kept
        return {
            name: nn.Parameter(data, requires_grad=weights[name].requires_grad)
            for name, data in self._mapped(weights).items()
        }

    def _mapped(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return weights in a new mapping; copies if there is no file."""
        files: dict[str, mmap.mmap] = {}
        found = {}
        for name, weight in weights.items():
            place = self._places.get(name)
            if place is None:
                found[name] = weight.detach().to("cpu", copy=True)
                continue
            if place.file not in files:
                with open(place.file, "rb") as opened:
                    files[place.file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            found[name] = _view(files[place.file], place.offset, weight)
        return found

    def _write(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Move weights into a file in memory, one at a time, so that none is held twice."""
        weights = {name: weight for name, weight in weights.items() if weight.is_contiguous()}
        offsets, size = {}, 0
        for name, weight in weights.items():
            offsets[name] = size
            size += -(-_bytes(weight) // _ALIGNMENT) * _ALIGNMENT
        if size == 0 or not hasattr(os, "memfd_create"):
            return
        descriptor = os.memfd_create("weights")
        weakref.finalize(self, os.close, descriptor)
        os.truncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        for name, weight in weights.items():
            if weight.numel() > 0:
                weight.data = _view(memory, offsets[name], weight).copy_(weight.data)
                file = f"/proc/self/fd/{descriptor}"
                self._places[name] = _Place(file=file, offset=offsets[name])


def _places(weights: Mapping[str, nn.Parameter]) -> Iterable[tuple[str, _Place | None]]:
    """Yield (name, place in the file) for each mapped weight; None if it is unaligned."""
    if not _REGIONS.exists():
        return
    found = [_REGION.fullmatch(line) for line in _REGIONS.read_text().splitlines()]
    regions = [
        (int(begin, 16), int(end, 16), int(offset, 16), file)
        for begin, end, offset, file in (region.groups() for region in found if region)
    ]
    for name, weight in weights.items():
        first = weight.data_ptr()
        for begin, end, offset, file in regions:
            if begin <= first < first + _bytes(weight) <= end and weight.is_contiguous():
                within = offset + first - begin
                aligned = within % weight.element_size() == 0
                yield name, _Place(file=file, offset=within) if aligned else None


def _view(memory: mmap.mmap, offset: int, weight: Tensor) -> Tensor:
    """Return a part of mapped memory as a tensor like a weight, on the CPU."""
    flat: Any = torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel(), offset=offset)
    view: Tensor = flat.view(weight.shape)
    return view


def _bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


#: A model larger than this share of the machine's memory is not kept.
_LARGEST_SHARE = 0.125


@dataclass(frozen=True, kw_only=True)
class _Kept:
    key: Hashable  # the weights and how they were loaded
    model: Any
    processor: Any
    mapped: MappedWeights


class BaseModels:
    """The base model that was loaded last, if it is kept."""

    def __init__(self) -> None:
        """Keep nothing until `keep` is called."""
        self._keep = False
        self._kept: _Kept | None = None

    def keep(self) -> None:
        """Keep the base model that is loaded next, for everything that this process runs."""
        self._keep = True

    def forget(self) -> None:
        """Drop the kept model and keep none."""
        self._keep, self._kept = False, None

    def make_room(self) -> None:
        """Move the kept model off the GPU."""
        if self._kept is not None:
            self._kept.model.to("cpu")

    def get(
        self, key: Hashable, load: Callable[[], tuple[Any, Any]], config: TrialConfig | None
    ) -> tuple[Any, Any]:
        """Return a base model and its processor, loaded or copied from the kept ones.

        Args:
            key: equal for equal weights that are loaded in the same way.
            load: loads them.
            config: the trial that will train the model; None: nobody writes to it.
        """
        if not self._keep:
            return load()
        if self._kept is None or self._kept.key != key:
            self._kept = None  # never hold two
            model, processor = load()
            if _bytes_of_weights(model) > _LARGEST_SHARE * total_memory():
                return model, processor
            mapped = MappedWeights(model)
            self._kept = _Kept(key=key, model=model, processor=processor, mapped=mapped)
        model, mapped = self._kept.model, self._kept.mapped
        trained = {} if config is None else trained_parts(model, config)
        own = {name: weight for weights in trained.values() for name, weight in weights.items()}
        copies: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
        copies |= {id(own[name]): weight for name, weight in mapped.again(own).items()}
        return copy.deepcopy(model, copies), copy.deepcopy(self._kept.processor)


def _bytes_of_weights(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


#: The instance of this process.
BASE_MODELS = BaseModels()
