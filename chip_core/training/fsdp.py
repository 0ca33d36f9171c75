"""FSDP2: weights, gradients and the optimizer's state sharded over the workers.

`fsdp` shards over all workers. `hsdp` (hybrid sharding) shards over the workers of each machine:
layers are gathered within a machine, and machines exchange only the gradients of a worker's part,
once per update.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.adapters import disable_adapter
from chip_core.models.loading import has_weights
from chip_core.models.parts import is_adapter, select_trained_parameters
from chip_core.models.precision import get_dtype
from chip_core.models.shards import WeightsFromRank0, gather_whole, get_local_part
from chip_core.objectives.forms import BatchObjective
from chip_core.objectives.global_batch import FactsSource
from chip_core.objectives.parts import Reads
from chip_core.objectives.scores import OutputHead, ReferenceScores
from chip_core.training.optimizer.masters import MasterWeights
from chip_core.training.parallel import Compute, SingleProcessStrategy, require_equal_machines
from chip_core.training.policy import LiveReferenceSource, Policy, round_hidden
from chip_core.utils.workers import BARRIER_TIMEOUT

#: Share of the free memory that weights, gradients and states may take.
_MAX_MEMORY_SHARE = 0.7

#: The dimensions of a mesh by which weights are sharded within a machine.
_HYBRID_DIMENSIONS = ("replicate", "shard")


class FSDPStrategy(SingleProcessStrategy):
    """Shards every layer's weights over the workers; they are gathered to compute the layer."""

    sharded = True

    def __init__(self, policy: Policy, config: TrialConfig, compute: Compute) -> None:
        """Shard a policy's weights, and move them to the device.

        Workers that have not loaded them receive rank 0's.
        """
        workers, device = compute.workers, compute.device
        super().__init__(policy, config, workers)
        self._root = _shard_policy(policy, compute)
        is_short = not _fits_gradients(self._root, device)
        # All workers decide alike, because they must synchronize equally often.
        self._syncs_each_pass = workers.all_reduce({"short": float(is_short)}, device)["short"] > 0

    def reference(self) -> LiveReferenceSource:
        """Return the policy as it is now, as the reference."""
        return ShardedReference(self._root, self.config)

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        """Reduce gradients in the last pass only, or in each pass if memory is short.

        Between machines that hold the same parts, they are reduced in the last pass only.
        """
        self._root.set_requires_gradient_sync(last or self._syncs_each_pass)
        self._root.set_requires_all_reduce(last)
        return nullcontext()

    def __call__(
        self,
        batch: PairBatch,
        reference: ReferenceScores,
        head: OutputHead | None,
        facts: FactsSource = None,
    ) -> BatchObjective:
        """Return the objective of this worker's pairs."""
        loss, terms, chosen, rejected = self._root(batch, reference, head, facts)
        return BatchObjective(
            loss=loss, terms=terms, chosen_reward=chosen, rejected_reward=rejected
        )

    def table_columns(self, batch: PairBatch, reference: ReferenceScores) -> dict[str, Tensor]:
        """Return the columns of this worker's pairs in the global batch's table."""
        columns: dict[str, Tensor] = self._root.table_columns(batch, reference)
        return columns

    def clip_grad_norm(self, trained: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Clip the gradient to a global norm and return the norm before clipping, 0-d."""
        trained_ids = {id(parameter) for parameter in trained}
        for parameter in self._root.parameters():
            # The first stage of a staged training computes the gradients of the later ones, too:
            # sharded parameters keep the `requires_grad` that they had when they were sharded.
            if id(parameter) not in trained_ids:
                parameter.grad = None
        norm: Tensor = gather_whole(super().clip_grad_norm(trained, limit))
        return norm

    def average_gradients(self, masters: MasterWeights, trained: Sequence[nn.Parameter]) -> None:
        """Drop the gradients of untrained weights. FSDP has averaged the others already."""
        masters.drop_untrained(trained)


class ShardedReference:
    """The policy before training: its adapter is disabled and its old weights are swapped in.

    The old weights of the parts trained in full are kept, sharded like the policy's.
    """

    def __init__(self, root: Any, config: TrialConfig) -> None:
        """Keep the policy's weights as they are now."""
        self._root = root
        self._model = root.policy.model
        self._rounds_hidden = config.reference_precision == "bf16"
        self._originals = {
            parameter: get_local_part(parameter).clone()
            for parameters in select_trained_parameters(self._model, config).values()
            for name, parameter in parameters.items()
            if not is_adapter(name)
        }
        layer = self._model.get_output_embeddings()
        self._head: OutputHead | None = None
        if layer.weight in self._originals:
            bias = None if layer.bias is None else layer.bias.detach().full_tensor().clone()
            self._head = OutputHead(weight=layer.weight.detach().full_tensor().clone(), bias=bias)

    @property
    def head(self) -> OutputHead | None:
        """The old output head, not sharded; None: the policy's own, which is frozen."""
        return self._head

    def scores(self, batch: PairBatch) -> ReferenceScores:
        """Return the scores of a batch by the policy before training."""
        return self.score_views(batch, None)

    @torch.no_grad()
    def score_views(self, batch: PairBatch, reads: Reads | None) -> ReferenceScores:
        """Return the `scores` of some views only, without computing others; None: of all."""
        with self._with_originals(), disable_adapter(self._model):
            scores: ReferenceScores = self._root.reference_scores(batch, reads)
            # Otherwise the root's old weights would stay gathered for the next pass.
            self._root.reshard()
        return round_hidden(scores) if self._rounds_hidden else scores

    @contextmanager
    def _with_originals(self) -> Iterator[None]:
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    def _swap_weights(self) -> None:
        for parameter, original in self._originals.items():
            current = get_local_part(parameter)
            swapped = original.clone()
            original.copy_(current)
            current.copy_(swapped)


class _Root(nn.Module):
    """A policy with outputs that FSDP can inspect."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self,
        batch: PairBatch,
        reference: ReferenceScores,
        head: OutputHead | None,
        facts: FactsSource = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None, Tensor | None]:
        result = self.policy(batch, reference, head, facts)
        return result.loss, result.terms, result.chosen_reward, result.rejected_reward

    def begin(self) -> None:
        """Run a pass that computes nothing."""

    def reference_scores(self, batch: PairBatch, reads: Reads | None) -> ReferenceScores:
        return self.policy.reference_scores(batch, reads)

    def table_columns(self, batch: PairBatch, reference: ReferenceScores) -> dict[str, Tensor]:
        return self.policy.table_columns(batch, reference)


def _make_mesh(compute: Compute) -> DeviceMesh:
    """Return the workers' mesh: one dimension, or under `hsdp` machines × workers of a machine.

    Raises:
        TrialError: under `hsdp`, the machines have different numbers of workers.
    """
    device_type = compute.device.type
    if compute.parallelism != "hsdp":
        return init_device_mesh(device_type, (torch.distributed.get_world_size(),))
    # With explicit ranks, since ranks need not be numbered machine by machine.
    machines, rank = require_equal_machines(compute.workers), compute.workers.rank
    groups = [_create_group(axis, rank) for axis in (list(zip(*machines, strict=True)), machines)]
    return DeviceMesh.from_group(
        groups, device_type, mesh=torch.tensor(machines), mesh_dim_names=_HYBRID_DIMENSIONS
    )


def _create_group(groups: Sequence[Sequence[int]], rank: int) -> Any:
    """Create process groups on all workers together, and return the group of a rank.

    The groups that a mesh creates itself have a shorter timeout than the workers' own.
    """
    created = [
        torch.distributed.new_group(list(ranks), timeout=BARRIER_TIMEOUT) for ranks in groups
    ]
    return next(group for ranks, group in zip(groups, created, strict=True) if rank in ranks)


def _fits_gradients(root: nn.Module, device: torch.device) -> bool:
    """Return whether a worker can keep the whole gradient until the last pass of an update.

    In addition, it holds its part of the gradient, of AdamW's two moments and of the old weights,
    and activations.
    """
    if device.type != "cuda":
        return True
    trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
    # Gradients are accumulated in fp32, whatever the dtype of the weights.
    whole_gradient = 4 * sum(parameter.numel() for parameter in trained)
    sharded_bytes = 4 * 4 * sum(get_local_part(parameter).numel() for parameter in trained)
    free: int = torch.cuda.mem_get_info(device)[0]
    return whole_gradient + sharded_bytes <= _MAX_MEMORY_SHARE * free


def _shard_policy(policy: Policy, compute: Compute) -> Any:
    """Return a policy's sharded root: each layer is an FSDP unit, and the rest is the root's.

    Weights are gathered in their own dtype. Gradients of bf16 weights are accumulated over passes
    and workers in fp32, and then rounded.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    mesh, workers = _make_mesh(compute), compute.workers
    bf16 = get_dtype(policy) == torch.bfloat16
    precision = MixedPrecisionPolicy(
        reduce_dtype=torch.float32 if bf16 else None, cast_forward_inputs=False
    )
    root: Any = _Root(policy)
    all_loaded = all(workers.gather_results(lambda: has_weights(policy)))
    sender = None if all_loaded else WeightsFromRank0(root, workers, compute.device)
    # Inner modules come before the layer around them. A layer is sharded as soon as its weights are
    # sent.
    layers = [layer for layer in policy.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for module in [*reversed(layers), root]:
        if sender is not None:
            sender.send(module)
        fully_shard(module, mesh=mesh, mp_policy=precision)
    register_fsdp_forward_method(root, "reference_scores")
    register_fsdp_forward_method(root, "table_columns")
    register_fsdp_forward_method(root, "begin")
    for module in root.modules():
        # A weight keeps the `requires_grad` that it has when it is first gathered, and a reference
        # pass temporarily clears that of an adapter.
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()
    # At the first pass, FSDP records the gradients' dtype of the parameters trained at that time,
    # and a staged training starts with the encoder only.
    root.begin()
    root.reshard()
    return root
