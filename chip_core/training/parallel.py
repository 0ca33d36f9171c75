"""One training by several workers: each has its share of every global batch.

`ddp`: every worker holds the whole model, and gradients are averaged. `fsdp` (sharded.py): weights,
gradients and the optimizer's state are spread over the workers, and a layer's weights come together
while it is computed. Either way gradients are brought together once an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from chip_core.config import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.memory import bytes_needed
from chip_core.objectives.head import OutputHead
from chip_core.objectives.terms import BatchObjective
from chip_core.training.policy import Policy
from chip_core.training.reference import LiveReference, ReferenceScores, ReferenceSource
from chip_core.workers import Workers

if TYPE_CHECKING:
    from chip_core.training.checkpoint import Stateful

Kind = Literal["alone", "ddp", "fsdp"]

#: Share of a GPU's free memory that may be taken before activations.
_ROOM = 0.8


def kind_of(config: TrialConfig, model: Any, device: torch.device, workers: Workers) -> Kind:
    """Return how the workers share a training; all come to the same.

    `auto` is `fsdp` where weights, gradients, optimizer and reference do not fit one GPU.

    Args:
        config: the trial.
        model: the model with its adapters, on any device.
        device: where it is trained.
        workers: who share it.
    """
    if workers.alone:
        return "alone"
    if config.engine.parallel != "auto":
        return config.engine.parallel
    if device.type != "cuda":
        return "ddp"
    free = torch.cuda.mem_get_info(device)[0]
    short = float(bytes_needed(model, config) > _ROOM * free)
    return "fsdp" if workers.sums({"short": short}, device)["short"] else "ddp"


class Alone:
    """One worker: nothing is to be brought together."""

    def __init__(self, policy: Policy, config: TrialConfig, workers: Workers) -> None:
        self.policy, self.config, self.workers = policy, config, workers

    def reference(self) -> ReferenceSource:
        """Return the policy as it is now, as the reference."""
        return LiveReference(self.policy, self.config)

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return what a forward pass and its backward are made in.

        Args:
            last: whether it is the last of a global batch: gradients are brought together in it.
        """
        return nullcontext()

    def __call__(
        self, batch: PairBatch, reference: ReferenceScores, head: OutputHead | None
    ) -> BatchObjective:
        """Return the objective of this worker's pairs."""
        result: BatchObjective = self.policy(batch, reference, head)
        return result

    def clip(self, trained: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Clip the gradient to a global norm and return the norm before, 0-d."""
        return nn.utils.clip_grad_norm_(trained, math.inf if limit is None else limit)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> Stateful:
        """Return the optimizer as checkpoints take it: whole, as one worker has it."""
        return optimizer


class Ddp(Alone):
    """Every worker holds the whole model."""

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

    def accumulating(self, *, last: bool) -> AbstractContextManager[Any]:
        """Average gradients in the last pass alone."""
        return nullcontext() if last else self._wrapped.no_sync()

    def __call__(
        self, batch: PairBatch, reference: ReferenceScores, head: OutputHead | None
    ) -> BatchObjective:
        """Return the objective of this worker's pairs."""
        result: BatchObjective = self._wrapped(batch, reference, head)
        return result


def parallel(
    kind: Kind, policy: Policy, config: TrialConfig, workers: Workers, device: torch.device
) -> Alone:
    """Return how a training's workers work together.

    Args:
        kind: of `kind_of`.
        policy: with what is ever trained marked so; on the training's device, but for `fsdp`,
            which takes it there.
        config: the trial.
        workers: who share it.
        device: where the policy is trained.
    """
    if kind == "fsdp":
        from chip_core.training.sharded import Sharded

        return Sharded(policy, config, workers, device)
    return (Ddp if kind == "ddp" else Alone)(policy, config, workers)
