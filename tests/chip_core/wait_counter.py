"""Count what a step makes a GPU do beside computing, on a CPU: what follows a device's tensors.

A tensor lies on the device if a weight does, if it was sent there, or if it was made of one that
does. What then brings something of it to the host would wait for a GPU.
"""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

#: Operators whose result is on the host, or of a size that the host has to know.
_WAITING_OPERATORS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::repeat_interleave.Tensor",
}

#: Methods of a tensor that bring all of it to the host, and which no operator shows on a CPU.
_HOST_COPY_METHODS = (Tensor.tolist, Tensor.numpy, Tensor.cpu)


class _DeviceStorages:
    """Which storages lie on the device."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}

    def add(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = weakref.finalize(storage, self._known.pop, key, None)

    def has(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage()._cdata in self._known

    def any(self, values: Iterable[Any]) -> bool:
        return any(map(self.has, values))


class WaitCounts:
    """What was counted, and from where."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.frozen_casts: Counter[str] = Counter()
        self.places: list[str] = []

    def count_wait(self, what: str) -> None:
        self.waits[what] += 1
        frames = [
            each for each in traceback.extract_stack() if "/wait_counter.py" not in each.filename
        ]
        own = [each for each in frames if "torch/" not in each.filename]
        self.places.append(f"{what}: {own[-1].filename}:{own[-1].lineno}")


class _OperatorMode(TorchDispatchMode):
    def __init__(self, counted: WaitCounts, there: _DeviceStorages, frozen: dict[int, str]) -> None:
        super().__init__()
        self._counted, self._there, self._frozen = counted, there, frozen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, _ = tree_flatten((args, kwargs or {}))
        name = func.name()
        there = self._there.any(given)
        if there and name in _WAITING_OPERATORS:
            self._counted.count_wait(name)
        if there and name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put"):
            places = args[1] if len(args) > 1 else ()
            if any(each is not None and each.dtype == torch.bool for each in places):
                self._counted.count_wait(f"{name} by a mask")
        made = func(*args, **(kwargs or {}))
        if name == "aten::_to_copy" and made.dtype != args[0].dtype:
            weight = self._frozen.get(args[0].untyped_storage()._cdata)
            if weight is not None:
                self._counted.frozen_casts[weight] += 1
        if there:
            for value in tree_flatten(made)[0]:
                if isinstance(value, Tensor):
                    self._there.add(value)
        return made


class _MethodMode(TorchFunctionMode):
    def __init__(self, counted: WaitCounts, there: _DeviceStorages) -> None:
        super().__init__()
        self._counted, self._there = counted, there

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _HOST_COPY_METHODS and self._there.has(args[0]):
            self._counted.count_wait(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def count_waits(model: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[WaitCounts]:
    """Count within the context; `chip_core.data.tensors.to_device` sends to the device."""
    from chip_core.data import tensors
    from chip_core.reference_cache import reader
    from chip_core.training import states

    there, counted = _DeviceStorages(), WaitCounts()
    for weight in [*model.parameters(), *model.buffers()]:
        there.add(weight)

    def to_device(value: Tensor, device: torch.device) -> Tensor:
        copy = value.clone()
        there.add(copy)
        return copy

    frozen = {
        weight.untyped_storage()._cdata: name
        for name, weight in model.named_parameters()
        if not weight.requires_grad
    }
    with monkeypatch.context() as patched, ExitStack() as stack:
        for module in (tensors, reader, states):
            patched.setattr(module, "to_device", to_device)
        stack.enter_context(_MethodMode(counted, there))
        stack.enter_context(_OperatorMode(counted, there, frozen))
        yield counted
