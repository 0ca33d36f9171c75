"""Gather sharded weights (DTensor), put them back, and send weights from rank 0 to the others.

Every worker of a training must call each of these functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model's weights are sharded over workers."""
    return any(is_dtensor(parameter) for parameter in model.parameters())


class WeightsFromRank0:
    """The weights that only rank 0 has loaded, sent to the other workers part by part.

    So parts can be sharded as they arrive, and no other worker ever holds the whole model.
    """

    def __init__(self, model: nn.Module, workers: Workers, device: torch.device) -> None:
        """Compare the models; send nothing yet.

        Args:
            model: with its weights on rank 0, possibly without them on the others; not sharded.
            workers: the workers that share it.
            device: the device that receives it on each worker.

        Raises:
            TrialError: another worker's model differs from rank 0's.
        """
        self._model, self._is_source, self._device = model, workers.is_main, device
        self._described = workers.broadcast_from_rank0(lambda: _describe_tensors(model))
        self._sent_names: set[str] = set()
        workers.gather_results(self._check_same_model)

    @torch.no_grad()
    def send(self, part: nn.Module) -> None:
        """Send a part's weights and buffers to every worker, unless they were sent before.

        What is one tensor on rank 0 is one on every worker.
        """
        part_ids = {id(module) for module in part.modules()}
        sent: dict[str, Tensor] = {}
        for prefix, owner in self._model.named_modules():
            if id(owner) not in part_ids:
                continue
            tensors = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
            for local_name, tensor in tensors:
                name = f"{prefix}.{local_name}" if prefix else local_name
                if name in self._sent_names:
                    continue
                self._sent_names.add(name)
                first_name = self._described[name][0]
                if first_name not in sent:
                    sent[first_name] = self._broadcast(tensor, *self._described[name][1:])
                if not self._is_source:
                    setattr(owner, local_name, sent[first_name])

    def _broadcast(self, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return rank 0's tensor on the device, on every worker."""
        if self._is_source:
            tensor.data = tensor.data.to(self._device)
            buffer = tensor.data.contiguous()
        else:
            buffer = torch.empty(shape, dtype=dtype, device=self._device)
        if buffer.numel() > 0:  # as bytes: every backend sends them, whatever the dtype
            torch.distributed.broadcast(buffer.view(-1).view(torch.uint8), src=0)
        if self._is_source:
            return tensor
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(buffer, requires_grad=tensor.requires_grad)
        return buffer

    def _check_same_model(self) -> None:
        described = _describe_tensors(self._model)
        names = self._described.keys() | described.keys()
        # dtypes and ties may differ: rank 0 decides them, because it read the files
        different = sorted(
            name
            for name in names
            if name not in described
            or name not in self._described
            or described[name][1] != self._described[name][1]
        )
        if different:
            raise TrialError(
                f"the model's files here differ from those of worker 0 ({different[0]}, …): copy "
                "the same ones to every machine"
            )


def _describe_tensors(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...], torch.dtype]]:
    """Return the first name of each weight and buffer, its shape and its kind."""
    first_names: dict[int, str] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {
        name: (first_names.setdefault(id(tensor), name), tuple(tensor.shape), tensor.dtype)
        for name, tensor in tensors
    }


def gather_whole(value: Any, *, keep: bool = True) -> Any:
    """Return plain data with every sharded tensor whole, on the CPU.

    Args:
        value: tensors, alone or in mappings and lists.
        keep: False: this worker only helps to gather; sharded tensors are returned empty.
    """
    if isinstance(value, Mapping):
        return {name: gather_whole(entry, keep=keep) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gather_whole(entry, keep=keep) for entry in value)
    if not is_dtensor(value):
        return value
    full = value.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def gather_weights(
    model: nn.Module, *, keep: bool = True, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return a model's state dict with `gather_whole` weights; tied ones are one tensor.

    Args:
        model: all workers call this with theirs.
        keep: as for `gather_whole`.
        names: of the weights wanted; None: all.
    """
    gathered: dict[int, Tensor] = {}
    weights = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if names is not None and name not in names:
            continue
        if id(value) not in gathered:
            gathered[id(value)] = gather_whole(value.detach(), keep=keep)
        weights[name] = gathered[id(value)]
    return weights


def get_local_weight(weight: Tensor) -> Tensor:
    """Return this worker's part of a weight, sharded or not, sharing its memory."""
    return get_local_part(weight) if is_dtensor(weight) else weight.detach()


def get_local_part(shard: Tensor) -> Tensor:
    """Return this worker's part of a sharded weight, sharing its memory, without a graph."""
    part: Tensor = shard.detach().to_local()  # type: ignore[attr-defined]
    return part


def get_shard_group(shard: Tensor) -> Any:
    """Return the process group of the workers that each hold a different part of a weight.

    If several workers hold the same part, it is not the group of all workers, but a mesh's last
    dimension.
    """
    mesh: Any = shard.device_mesh  # type: ignore[attr-defined]
    return mesh.get_group(mesh.ndim - 1)


def shard_like(value: Tensor, shard: Tensor) -> Tensor:
    """Return a whole tensor sharded like another; unchanged if that one is whole."""
    if not is_dtensor(shard):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh: Any = shard.device_mesh  # type: ignore[attr-defined]
    placements = shard.placements  # type: ignore[attr-defined]
    # Every worker has the whole tensor, so nothing needs to be sent.
    return distribute_tensor(value.to(shard.device), mesh, placements, src_data_rank=None)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole weights into a model, sharded or not, by name."""
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name in tensors.keys() & weights.keys():
        tensors[name].copy_(shard_like(weights[name], tensors[name]))


def is_dtensor(value: Any) -> bool:
    """Return whether a tensor is sharded over workers."""
    return hasattr(value, "full_tensor")
