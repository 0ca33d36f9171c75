"""Losses that depend on other pairs of a global batch, exact over passes and workers.

If a global batch is computed in one pass, that pass has all its numbers. Otherwise the pairs'
numbers are gathered first, by a pass without gradients if the objective's scope is `scores`; each
pair's loss can then be computed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.objectives.global_batch import BatchFacts, BatchTable, State, compute_batch_facts
from chip_core.utils.seeding import make_generator
from chip_core.utils.workers import Workers

#: Returns the columns of a batch's pairs; see `Policy.table_columns`.
ComputeColumns = Callable[[PairBatch], Mapping[str, Tensor]]


class GlobalBatchScope:
    """The facts of each global batch that an objective needs, and its state between batches."""

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

    def single_pass_facts(self, batch: PairBatch, step: int) -> Callable[[BatchTable], BatchFacts]:
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
            columns: computes a pass's columns; called for every pass, as workers wait for it.
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
        """Keep the state after a batch whose update is made."""
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
