"""Parallel strategies: how the workers of a training share each global batch.

`ddp`: every worker holds the whole model, and gradients are averaged (in bf16 training, those
accumulated in the masters; see masters.py). `fsdp` (fsdp.py): weights, gradients and the
optimizer's state are sharded over the workers, and a layer's weights are gathered while it is
computed. `hsdp` (fsdp.py too): they are sharded over the workers of one machine and replicated over
machines. In every case, gradients are reduced once per update.

Losses that depend on other pairs of a global batch are exact over passes and workers
(`GlobalBatchScope`). If a global batch is computed in one pass, that pass has all numbers of the
batch. Otherwise the pairs' numbers are gathered first, by a pass without gradients if the
objective's scope is `scores`; each pair's loss can then be computed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.models.memory import estimate_required_bytes
from chip_core.objectives.forms import BatchObjective
from chip_core.objectives.global_batch import (
    BatchFacts,
    BatchTable,
    FactsSource,
    State,
    compute_batch_facts,
)
from chip_core.objectives.scores import OutputHead, ReferenceScores
from chip_core.training.optimizer.masters import MasterWeights
from chip_core.training.policy import LiveReference, LiveReferenceSource, Policy
from chip_core.utils.errors import TrialError
from chip_core.utils.seeding import make_generator
from chip_core.utils.workers import Workers

Parallelism = Literal["single", "ddp", "fsdp", "hsdp"]
#: The strategies in which each worker holds a part of every weight.
SHARDED_PARALLELISMS: frozenset[Parallelism] = frozenset({"fsdp", "hsdp"})

#: Returns the columns of a batch's pairs; see `Policy.table_columns`.
ComputeColumns = Callable[[PairBatch], Mapping[str, Tensor]]

#: Share of a GPU's free memory that may be used without activations.
_MAX_MEMORY_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The device and the workers of a training."""

    device: torch.device = torch.device("cpu")
    workers: Workers = Workers()
    parallelism: Parallelism = "single"  # from `choose_parallelism`


def choose_parallelism(
    config: TrialConfig, model: Any, device: torch.device, workers: Workers
) -> Parallelism:
    """Return how the workers share a training; all workers get the same result.

    `auto` shards if weights, gradients, optimizer and reference do not fit one GPU: with `hsdp` if
    they fit the GPUs of each of several machines, else with `fsdp`. `hsdp` becomes `fsdp` on one
    machine, and `ddp` on machines with one worker each.

    Args:
        config: the trial.
        model: the model with its adapters, on any device.
        device: the device of the training.
        workers: the workers that share it.

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
    if device.type != "cuda" or config.model.quantize != "none":  # 4-bit weights are not sharded
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
            "engine.parallel is hsdp, which needs the same number of workers on each machine, "
            f"but {workers.size} workers are {' + '.join(map(str, counts))} on {len(counts)} "
            "machines: write an engine.workers_per_trial that divides evenly over the machines, "
            "or engine.parallel: fsdp"
        )
    return machines


def count_weight_shards(parallelism: Parallelism, workers: Workers) -> int:
    """Return over how many workers each weight is sharded; all workers call this together."""
    if parallelism == "hsdp":
        return len(require_equal_machines(workers)[0])
    return workers.size if parallelism == "fsdp" else 1


class SingleProcessStrategy:
    """One worker computes everything; nothing is sharded or reduced."""

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
            last: whether it is the last one of a global batch, in which gradients are reduced.
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
        """Return the columns of this worker's pairs in the global batch's table."""
        return self.policy.table_columns(batch, reference)

    def clip_grad_norm(self, trained: Sequence[nn.Parameter], limit: float | None) -> Tensor:
        """Clip the gradient to a global norm and return the norm before clipping, 0-d."""
        return nn.utils.clip_grad_norm_(trained, math.inf if limit is None else limit)

    def average_gradients(self, masters: MasterWeights, trained: Sequence[nn.Parameter]) -> None:
        """Average the gradients in the masters over the global batch, on every worker."""


class ReplicatedStrategy(SingleProcessStrategy):
    """Every worker holds the whole model in bf16; gradients are averaged in fp32, once per update.

    DDP would average them in bf16.
    """

    def average_gradients(self, masters: MasterWeights, trained: Sequence[nn.Parameter]) -> None:
        """Average the gradients in the masters over the global batch, on every worker."""
        masters.average(trained, self.workers)


class DDPStrategy(SingleProcessStrategy):
    """Every worker holds the whole model in fp32."""

    def __init__(self, policy: Policy, config: TrialConfig, workers: Workers) -> None:
        super().__init__(policy, config, workers)
        self._wrapped = nn.parallel.DistributedDataParallel(
            policy,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # LLaVA reads the second-to-last layer of its vision encoder, so the last one gets no
            # gradient. And a staged training starts without gradients of the later parts.
            find_unused_parameters=config.vision_encoder != "frozen"
            or config.projector != "frozen",
        )

    def accumulate(self, *, last: bool) -> AbstractContextManager[Any]:
        """Average gradients in the last pass only."""
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


class GlobalBatchScope:
    """The facts of each global batch that an objective needs, and the state between batches."""

    def __init__(self, config: TrialConfig, workers: Workers, device: torch.device) -> None:
        """Start without a state.

        Args:
            config: the trial.
            workers: the workers that share each batch.
            device: the device of the training.
        """
        self._config, self._workers, self._device = config, workers, device
        method = config.objective.resolved_method
        self.scope = config.objective.scope
        self.has_state = method is not None and method.state is not None
        self._state: State = {}
        self._next_state: State = {}

    def make_single_pass_facts(
        self, batch: PairBatch, step: int
    ) -> Callable[[BatchTable], BatchFacts]:
        """Return a function that makes the facts of a batch computed in one pass.

        Args:
            batch: the pass.
            step: counted from 1.
        """
        order = torch.tensor(batch.indices).argsort()  # the order of the data, as in `gather`

        def compute_facts(table: BatchTable) -> BatchFacts:
            columns = {name: values.cpu()[order] for name, values in table.columns.items()}
            batch_facts = self._compute_facts(replace(table, columns=columns), step)
            return batch_facts.select(order.argsort()).to(self._device)

        return compute_facts

    def gather(
        self, batches: Sequence[tuple[PairBatch, bool]], columns: ComputeColumns, step: int
    ) -> list[BatchFacts]:
        """Return the facts of each of this worker's passes.

        Args:
            batches: its passes, each with whether it counts.
            columns: computes a pass's columns; called for every pass, because workers wait for it.
            step: counted from 1.
        """
        tokens, rows = 0, dict[int, dict[str, float]]()
        for batch, counts in batches:
            column_tensors = columns(batch) if self.scope == "scores" else {}
            values = {name: column.tolist() for name, column in column_tensors.items()}
            if counts:
                tokens += int(batch.chosen.mask.sum())
                for position, index in enumerate(batch.indices):
                    rows[index] = {name: column[position] for name, column in values.items()}
        gathered = self._workers.all_gather((tokens, rows))
        # In the order of the data, independent of the worker that computed a pair.
        all_rows = dict(
            sorted(entry for _, worker_rows in gathered for entry in worker_rows.items())
        )
        names = next(iter(all_rows.values())).keys()
        table = BatchTable(
            tokens=sum(count for count, _ in gathered),
            pairs=len(all_rows),
            columns={
                name: torch.tensor([row[name] for row in all_rows.values()], dtype=torch.float64)
                for name in names
            },
        )
        facts = self._compute_facts(table, step)
        order = {index: position for position, index in enumerate(all_rows)}
        return [
            facts.select(torch.tensor([order[index] for index in batch.indices])).to(self._device)
            for batch, _ in batches
        ]

    def commit(self) -> None:
        """Keep the state after a batch with a completed update."""
        self._state = self._next_state

    def state_dict(self) -> dict[str, Any]:
        """Return the state between batches, as plain data for a checkpoint."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._state = dict(state)

    def _compute_facts(self, table: BatchTable, step: int) -> BatchFacts:
        generator = make_generator("kept pairs", self._config.seed, step)
        facts, self._next_state = compute_batch_facts(
            self._config.objective, table, self._state, generator=generator
        )
        return facts
