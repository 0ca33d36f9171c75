"""Weights that are spread over workers (DTensor): brought together whole, and put back; and those
that one worker alone has loaded, given to the others before they are spread.

Every worker of a training has to come to each of these functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model's weights are spread over workers."""
    return any(is_spread(parameter) for parameter in model.parameters())


def has_weights(model: nn.Module) -> bool:
    """Return whether a model's weights are here: on torch's meta device they have shapes alone."""
    return not any(parameter.is_meta for parameter in model.parameters())


class WeightsFromRank0:
    """What rank 0 alone has loaded of a model, given to the other workers part by part.

    So that parts can be spread as they come, and no other worker ever holds the whole model.
    """

    def __init__(self, model: nn.Module, workers: Workers, device: torch.device) -> None:
        """Give nothing yet.

        Args:
            model: of rank 0 with its weights, of the others perhaps without; not spread.
            workers: who share it.
            device: where all of them are to have it.

        Raises:
            TrialError: the others' is another model than rank 0's.
        """
        self._model, self._first, self._device = model, workers.first, device
        self._told = workers.broadcast_from_rank0(lambda: _described(model))
        self._given: set[str] = set()
        workers.each(self._check)

    @torch.no_grad()
    def give(self, part: nn.Module) -> None:
        """Have every worker hold a part's weights and buffers, those not given before.

        What was one tensor on rank 0 is one on every worker.
        """
        within = {id(module) for module in part.modules()}
        whole: dict[str, Tensor] = {}
        for prefix, owner in self._model.named_modules():
            if id(owner) not in within:
                continue
            own = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
            for short, tensor in own:
                name = f"{prefix}.{short}" if prefix else short
                if name in self._given:
                    continue
                self._given.add(name)
                first = self._told[name][0]
                if first not in whole:
                    whole[first] = self._sent(tensor, *self._told[name][1:])
                if not self._first:
                    setattr(owner, short, whole[first])

    def _sent(self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return rank 0's tensor on the device, on every worker."""
        if self._first:
            tensor.data = tensor.data.to(self._device)
            sent = tensor.data.contiguous()
        else:
            sent = torch.empty(shape, dtype=dtype, device=self._device)
        if sent.numel() > 0:  # as bytes: whatever it is of, every backend sends them
            torch.distributed.broadcast(sent.view(-1).view(torch.uint8), src=0)
        if self._first:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(sent, requires_grad=tensor.requires_grad)
        return sent

    def _check(self) -> None:
        own = _described(self._model)
        names = self._told.keys() | own.keys()
        # What they are held in and which are one tensor is rank 0's to say: it read the files.
        other = sorted(
            name
            for name in names
            if name not in own or name not in self._told or own[name][1] != self._told[name][1]
        )
        if other:
            raise TrialError(
                f"the model's files here are not those of worker 0 ({other[0]}, …): copy the same "
                "ones to every machine"
            )


def _described(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...], torch.dtype]]:
    """Return of each weight and buffer the first name that it has, its shape and its kind."""
    firsts: dict[int, str] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {
        name: (firsts.setdefault(id(tensor), name), tuple(tensor.shape), tensor.dtype)
        for name, tensor in tensors
    }


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


def shard_group(shard: Tensor) -> Any:
    """Return the process group of the workers that hold one another part of a weight each.

    Not of all workers where several of them hold the same part: a mesh's last dimension.
    """
    mesh: Any = shard.device_mesh  # type: ignore[attr-defined]
    return mesh.get_group(mesh.ndim - 1)


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
