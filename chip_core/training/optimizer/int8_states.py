"""AdamW's moments in 8 bits, by torchao, and optimizer states in checkpoints.

torchao stores a moment as one code per weight, and a scale for each 256 weights of a worker's part,
in row order; weights of fewer than 4,096 entries keep theirs in fp32. A checkpoint has both, as
`ENTRY_codes` and `ENTRY_scale`, so that a training resumes to the same bits. If weights are sharded
and a block crosses the end of a row, the checkpoint has `ENTRY_wide` instead: the dequantized
values, which are quantized again on loading, because other shards have other blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.models.shards import is_dtensor, shard_like

BLOCK_SIZE = 256
_CODES, _SCALE, _WIDE = "_codes", "_scale", "_wide"


@functools.cache
def int8_adamw() -> Any:
    """Return the class of torchao's AdamW with moments in 8 bits."""
    from torchao.optim import AdamW8bit

    class Int8AdamW(AdamW8bit):  # type: ignore[misc]
        in_8_bits = True

        def step(self, closure: Any = None) -> Any:
            # torchao compiles its update; on a CPU that needs a compiler and gains nothing.
            cuda = any(p.is_cuda for group in self.param_groups for p in group["params"])
            with torch.compiler.set_stance("default" if cuda else "force_eager"):
                return super().step(closure)

    return Int8AdamW


def get_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """Return an optimizer's state as plain tensors, sharded as its parameters are."""
    state: dict[str, Any] = optimizer.state_dict()
    plain = {number: _to_plain_tensors(entries) for number, entries in state["state"].items()}
    return {**state, "state": plain}


@torch.no_grad()
def load_optimizer_state(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Load what `get_optimizer_state` returned into an optimizer, sharded as its parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not _in_8_bits(optimizer):
        sharded = {
            index: {
                name: shard_like(value, parameters[index])
                if isinstance(value, Tensor) and value.shape == parameters[index].shape
                else value
                for name, value in entries.items()
            }
            for index, entries in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": sharded})
        return
    _make_moments(optimizer)
    moments = optimizer.state_dict()["state"]
    for index, entries in state["state"].items():
        for name, moment in moments[index].items():
            _load_moment(moment, name, entries, parameters[index])
    filled = {index: moments[index] for index in state["state"]}
    optimizer.load_state_dict({**state, "state": filled})


def _in_8_bits(optimizer: Any) -> bool:
    return getattr(optimizer, "in_8_bits", False)


def _make_moments(optimizer: Any) -> None:
    """Make an optimizer create its moments, by an update with zero rate and zero gradients."""
    for group in optimizer.param_groups:
        rate = group["lr"].clone()
        group["lr"].zero_()
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            parameter.grad = None
        group["lr"].copy_(rate)


def _load_moment(
    moment: Any, name: str, entries: Mapping[str, Any], parameter: nn.Parameter
) -> None:
    """Copy the checkpoint's values of one entry of a parameter's state into it."""
    parts = _to_plain_tensors({name: moment})
    if parts.keys() <= entries.keys():
        for part, target in parts.items():
            target.copy_(_shard_entry(entries[part], target))
        return
    wide = entries.get(name + _WIDE)
    if wide is None:  # saved whole, and here sharded within blocks
        codes, scale = entries[name + _CODES], entries[name + _SCALE]
        values = _to_local(moment).qmap.to(codes.device)[codes.int()]
        wide = (values.view(-1, BLOCK_SIZE) * scale.view(-1, 1)).view(codes.shape)
    moment.copy_(_shard_entry(wide, parameter))


def _to_plain_tensors(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state as plain tensors, which share its memory if possible."""
    plain: dict[str, Any] = {}
    for name, value in entries.items():
        local = _to_local(value)
        if not hasattr(local, "codes"):
            plain[name] = value
        elif not is_dtensor(value):
            plain[name + _CODES], plain[name + _SCALE] = local.codes, local.scale
        elif value.numel() // len(value) % BLOCK_SIZE == 0:  # blocks end with the rows
            plain[name + _CODES] = _shard_rows_like(value, local.codes, value.shape)
            blocks = value.numel() // len(value) // BLOCK_SIZE
            scale = local.scale.view(-1, blocks)
            plain[name + _SCALE] = _shard_rows_like(value, scale, torch.Size((len(value), blocks)))
        else:
            plain[name + _WIDE] = _shard_rows_like(value, local.dequantize(), value.shape)
    return plain


def _to_local(value: Any) -> Any:
    return value.to_local() if is_dtensor(value) else value


def _shard_rows_like(template: Any, part: Tensor, shape: torch.Size) -> Tensor:
    """Return this worker's part as a tensor of `shape`, sharded by rows as `template` is."""
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = template.device_mesh, template.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)


def _shard_entry(value: Any, template: Tensor) -> Any:
    """Return an entry, sharded as a tensor of the same size is."""
    return value if is_dtensor(value) else shard_like(value.view(template.shape), template)
