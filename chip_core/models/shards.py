"""Weights that are spread over workers (DTensor): brought together whole, and put back.

Every worker of a training has to come to each of these functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model's weights are spread over workers."""
    return any(is_spread(parameter) for parameter in model.parameters())


def whole(value: Any, *, keep: bool = True) -> Any:
    """Return plain data with every tensor that was spread whole, on the CPU.

    Args:
        value: tensors, in mappings and lists or alone.
        keep: False: only help the others to theirs; what was spread comes back empty.
    """
    if isinstance(value, Mapping):
        return {name: whole(entry, keep=keep) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(entry, keep=keep) for entry in value)
    if not is_spread(value):
        return value
    together = value.full_tensor()
    return together.cpu() if keep else together.new_empty(0)


def whole_weights(
    model: nn.Module, *, keep: bool = True, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return a model's state dict with `whole` weights; tied ones are one tensor.

    Args:
        model: all workers come here with theirs.
        keep: as for `whole`.
        names: of the weights wanted; None: all.
    """
    known: dict[int, Tensor] = {}
    weights = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if names is not None and name not in names:
            continue
        if id(value) not in known:
            known[id(value)] = whole(value.detach(), keep=keep)
        weights[name] = known[id(value)]
    return weights


def local_weight(weight: Tensor) -> Tensor:
    """Return what this worker holds of a weight, spread or not, sharing its memory."""
    return local_part(weight) if is_spread(weight) else weight.detach()


def local_part(shard: Tensor) -> Tensor:
    """Return this worker's part of a weight, sharing its memory; no graph goes through it."""
    part: Tensor = shard.detach().to_local()  # type: ignore[attr-defined]
    return part


def shard_like(value: Tensor, shard: Tensor) -> Tensor:
    """Return a whole tensor as it is spread in another; as it is where that is whole."""
    if not is_spread(shard):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = shard.device_mesh  # type: ignore[attr-defined]
    placements = shard.placements  # type: ignore[attr-defined]
    # Every worker has the whole: nothing needs to be sent.
    return distribute_tensor(value.to(shard.device), mesh, placements, src_data_rank=None)


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put whole weights into a model, spread or not, where it has their names."""
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name in own.keys() & weights.keys():
        own[name].copy_(shard_like(weights[name], own[name]))


def is_spread(value: Any) -> bool:
    """Return whether a tensor is spread over workers."""
    return hasattr(value, "full_tensor")
