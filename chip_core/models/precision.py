"""What a model's weights are held in, and a look at it in fp32 where they are held in less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

Precision = Literal["fp32", "bf16"]

#: `model.dtype` -> torch's.
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return what a model computes in: what its weights are held in."""
    return next(model.parameters()).dtype


def hold(model: Any, precision: Precision) -> Any:
    """Have a model's weights held in a precision, in place, and return it.

    Buffers stay as they are: the frequencies of rotary positions are fp32 in every model.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(DTYPES[precision])
    return model


def is_quantized(module: nn.Module) -> bool:
    """Return whether a layer's weight is packed: a `Linear4bit` of bitsandbytes."""
    return hasattr(getattr(module, "weight", None), "quant_state")


def as_held(inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Return a model's inputs with pixels and their like in bf16 where it computes in that.

    Other models take them as they come.
    """
    if model.get_input_embeddings().weight.dtype != torch.bfloat16:  # fp32 within `in_fp32`
        return dict(inputs)
    return {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in inputs.items()
    }


@contextmanager
def in_fp32(model: nn.Module, leaves: Sequence[nn.Parameter] = ()) -> Iterator[list[Tensor]]:
    """Have a model that is held in less compute in fp32, for as long as the context is open.

    Each weight is widened where it is used, and no longer: a second copy of the model is not made.

    Args:
        model: not sharded.
        leaves: weights whose gradient is asked for.

    Yields:
        what stands for each of the leaves: their gradients are fp32. Of a model that is held in
        fp32 or more, the leaves themselves.
    """
    if dtype_of(model) != torch.bfloat16:
        yield list(leaves)
        return
    stands = {id(leaf): leaf.detach().float().requires_grad_() for leaf in leaves}
    widened = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_floating_point()
    ]
    packed: list[Any] = [module for module in model.modules() if is_quantized(module)]
    done: list[tuple[nn.Module, str]] = []
    try:
        for module in packed:  # what is unpacked of 4 bits is multiplied in fp32, too
            module.compute_dtype = torch.float32
        for module, name, parameter in widened:
            wide = _Widened(stands.get(id(parameter)))
            parametrize.register_parametrization(module, name, wide, unsafe=True)
            done.append((module, name))
        with _Widening():
            yield [stands[id(leaf)] for leaf in leaves]
    finally:
        for module in packed:
            module.compute_dtype = torch.bfloat16
        for module, name in done:  # in this order, their names come back in theirs
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)


class _Widening(TorchFunctionMode):
    """Widens what is left in bf16 between layers: some families round to what they are held in."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*_wide(args), **_wide(dict(kwargs or {})))


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
        return value.float()
    if type(value) in (tuple, list):
        return type(value)(map(_wide, value))
    if type(value) is dict:
        return {name: _wide(entry) for name, entry in value.items()}
    return value


class _Widened(nn.Module):
    """A weight in fp32."""

    def __init__(self, stands: Tensor | None) -> None:
        super().__init__()
        self._stands = [stands]  # in a list: it is no weight of the model's

    def forward(self, weight: Tensor) -> Tensor:
        return weight.float() if self._stands[0] is None else self._stands[0]
