"""Weights of a loaded model that can be had again as they were loaded, without a copy of them.

They are mapped privately from a file: all who read a page share it, and who writes to a page gets a
copy of that page.
"""

from __future__ import annotations

import mmap
import os
import re
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Bytes. torch's own memory begins at a multiple of it; some kernels add up in another order, so
#: that figures differ in the last digit, where weights do not.
_ALIGNMENT = 64
#: A line of /proc/self/maps: where a file is mapped, from which of its bytes on, and its path.
_REGION = re.compile(r"(\w+)-(\w+) r\S* (\w+) \S+ [1-9]\d* +(/.*)")
_REGIONS = Path("/proc/self/maps")


@dataclass(frozen=True, kw_only=True)
class _Place:
    file: str
    offset: int  # in bytes


class MappedWeights:
    """Where the weights of a model lie in files."""

    def __init__(self, model: nn.Module) -> None:
        """Look up which weights are mapped from the files that they were loaded from."""
        weights = dict(model.named_parameters())
        self._places = {name: place for name, place in _places(weights) if place is not None}

    def again(self, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return weights as they were loaded, on the CPU; what is written to them stays in them.

        Those that lie in no file are put into one in this process's memory first. The given weights
        lie in a file afterwards, too.

        Args:
            weights: of the model, by name; nobody has written to them.
        """
        self._write({name: each for name, each in weights.items() if name not in self._places})
        for name, kept in self._mapped(weights).items():
            if weights[name].is_cuda:  # one trial's frozen weights are trained in the next
                weights[name].data = kept
        return {
            name: nn.Parameter(data, requires_grad=weights[name].requires_grad)
            for name, data in self._mapped(weights).items()
        }

    def _mapped(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return weights in a mapping of their own; where there is no file, copies."""
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
        """Move weights into a file in memory, one after the other, so that none is held twice."""
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
    """Return where weights are mapped from, by name; where that cannot be told, None."""
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
    """Return a piece of mapped memory as a tensor like a weight, on the CPU."""
    flat: Any = torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel(), offset=offset)
    view: Tensor = flat.view(weight.shape)
    return view


def _bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()
