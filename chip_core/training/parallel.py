"""Parallel strategies: how the workers of a training share each global batch.

`ddp`: every worker holds the whole model, and gradients are averaged (in bf16,
those that are added up beside the masters, masters.py). `fsdp` (fsdp.py): weights, gradients and
the optimizer's state are sharded over the workers, and a layer's weights are gathered while it is
computed. `hsdp` (fsdp.py too): they are sharded over the workers of one machine and replicated
over machines. In every case, gradients are reduced once per update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.memory import estimate_required_bytes
from chip_core.objectives.global_batch import FactsSource
from chip_core.objectives.head import OutputHead
from chip_core.objectives.terms import BatchObjective, ReferenceScores
from chip_core.training.optimizer.masters import MasterWeights
from chip_core.training.policy import Policy
from chip_core.training.reference import LiveReference, LiveReferenceSource
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers

Parallelism = Literal["single", "ddp", "fsdp", "hsdp"]
#: Those by which each worker holds a part of every weight.
SHARDED_PARALLELISMS: frozenset[Parallelism] = frozenset({"fsdp", "hsdp"})

#: Share of a GPU's free memory that may be taken before activations.
_MAX_MEMORY_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where a training is computed, and by whom."""

    device: torch.device = torch.device("cpu")
    workers: Workers = Workers()
    parallelism: Parallelism = "single"  # of `choose_parallelism`


def choose_parallelism(
    config: TrialConfig, model: Any, device: torch.device, workers: Workers
) -> Parallelism:
    """Return how the workers share a training; all come to the same.

    `auto` shards where weights, gradients, optimizer and reference do not fit one GPU: as `hsdp`
    where they fit the GPUs of each of several machines, else as `fsdp`. `hsdp` of one machine is
    `fsdp`, and of machines with one worker each `ddp`.

    Args:
        config: the trial.
        model: the model with its adapters, on any device.
        device: where it is trained.
        workers: who share it.

    Raises:
        TrialError: under `hsdp`, the machines have different numbers of workers.
    """
    requested = config.engine.parallel
    if workers.is_single:
        return "single"
    if requested == "hsdp":
        machines = require_equal_machines(workers)
        if len(machines) == 1:
            return "fsdp"
        return "ddp" if len(machines) == workers.size else "hsdp"
    if requested != "auto":
        return requested
    if device.type != "cuda" or config.model.quantize != "none":  # 4 bits are not spread
        return "ddp"
    available = _MAX_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    required = estimate_required_bytes(model, config)
    counts = [len(ranks) for ranks in workers.ranks_by_machine()]
    workers_per_machine = counts[0] if len(set(counts)) == 1 else 0
    exceeds = workers.all_reduce(
        {
            "gpu": float(required > available),
            "machine": float(required > workers_per_machine * available),
        },
        device,
    )
    if not exceeds["gpu"]:
        return "ddp"
    return "hsdp" if len(counts) > 1 and not exceeds["machine"] else "fsdp"


def require_equal_machines(workers: Workers) -> list[list[int]]:
    """Return the ranks on each machine, the same number on each; all workers call this together.

    Raises:
        TrialError: the machines have different numbers of workers.
    """
    machines = workers.ranks_by_machine()
    counts = [len(ranks) for ranks in machines]
    if len(set(counts)) > 1:
        raise TrialError(
            "engine.parallel is hsdp, which needs as many workers on each machine, and "
            f"{workers.size} workers lie {' + '.join(map(str, counts))} on {len(counts)} machines: "
            "write an engine.workers_per_trial that the machines hold evenly, or "
            "engine.parallel: fsdp"
        )
    return machines


def count_weight_shards(parallelism: Parallelism, workers: Workers) -> int:
    """Return over how many workers each weight is sharded; all workers call this together."""
    if parallelism == "hsdp":
        return len(require_equal_machines(workers)[0])
    return workers.size if parallelism == "fsdp" else 1


class SingleProcessStrategy:
    """One worker computes everything: nothing is sharded or reduced."""

    #: Whether each worker holds a part of every weight.
    sharded = False

    def __init__(self, policy: Policy, config: TrialConfig, workers: Workers) -> None:
        self.policy, self.config, self.workers = policy, config, workers

    def reference(self) -> LiveReferenceSource:
        """Return the policy as it is now, as the reference."""
        return LiveReference(self.policy, self.config)

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a forward pass and its backward.

        Args:
            last: whether it is the last of a global batch: gradients are reduced in it.
        """
        return nullcontext()

    def __call__(
        self,
        batch: PairBatch,
        reference: ReferenceScores,
        head: OutputHead | None,
        facts: FactsSource = None,
    ) -> BatchObjective:
        """Return the objective of this worker's pairs; `facts` are of the global batch."""
        result: BatchObjective = self.policy(batch, reference, head, facts)
        return result

    def table_columns(self, batch: PairBatch, reference: ReferenceScores) -> dict[str, Tensor]:
        """Return what the global batch's table holds of this worker's pairs."""
        return self.policy.table_columns(batch, reference)

    def clip_grad_norm(self, trained: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Clip the gradient to a global norm and return the norm before, 0-d."""
        return nn.utils.clip_grad_norm_(trained, math.inf if limit is None else limit)

    def average_gradients(self, masters: MasterWeights, trained: Sequence[nn.Parameter]) -> None:
        """Have every worker's gradient beside the masters be the mean over the global batch."""


class ReplicatedStrategy(SingleProcessStrategy):
    """Every worker holds the whole model in bf16: gradients are averaged once an update, in fp32.

    DDP would average them in what they are made in.
    """

    def average_gradients(self, masters: MasterWeights, trained: Sequence[nn.Parameter]) -> None:
        """Have every worker's gradient beside the masters be the mean over the global batch."""
        masters.average(trained, self.workers)


class DDPStrategy(SingleProcessStrategy):
    """Every worker holds the whole model in fp32."""

    def __init__(self, policy: Policy, config: TrialConfig, workers: Workers) -> None:
        super().__init__(policy, config, workers)
        self._wrapped = nn.parallel.DistributedDataParallel(
            policy,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # LLaVA reads its vision encoder's last layer but one: the last gets no gradient. And a
            # staged training begins without the others' gradients.
            find_unused_parameters=config.vision_encoder != "frozen"
            or config.projector != "frozen",
        )

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        """Average gradients in the last pass alone."""
        return nullcontext() if last else self._wrapped.no_sync()

    def __call__(
        self,
        batch: PairBatch,
        reference: ReferenceScores,
        head: OutputHead | None,
        facts: FactsSource = None,
    ) -> BatchObjective:
        """Return the objective of this worker's pairs."""
        result: BatchObjective = self._wrapped(batch, reference, head, facts)
        return result
