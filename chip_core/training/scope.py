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
Columns = Callable[[PairBatch], Mapping[str, Tensor]]


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
        self._after: State = {}

    def own(self, batch: PairBatch, step: int) -> Callable[[BatchTable], BatchFacts]:
        """Return a function that makes the facts of a batch computed in one pass.

        Args:
            batch: the pass.
            step: counted from 1.
        """
        order = torch.tensor(batch.indices).argsort()  # the order of the data, as in `gather`

        def facts(table: BatchTable) -> BatchFacts:
            columns = {name: values.cpu()[order] for name, values in table.columns.items()}
            known = self._facts(replace(table, columns=columns), step)
            return known.select(order.argsort()).to(self._device)

        return facts

    def gather(
        self, batches: Sequence[tuple[PairBatch, bool]], columns: Columns, step: int
    ) -> list[BatchFacts]:
        """Return the facts of each of this worker's passes.

        Args:
            batches: its passes, each with whether it counts.
            columns: computes a pass's columns; called for every pass, as workers wait for it.
            step: counted from 1.
        """
        tokens, rows = 0, dict[int, dict[str, float]]()
        for batch, counts in batches:
            said = columns(batch) if self.scope == "scores" else {}
            values = {name: column.tolist() for name, column in said.items()}
            if counts:
                tokens += int(batch.chosen.mask.sum())
                for number, place in enumerate(batch.indices):
                    rows[place] = {name: column[number] for name, column in values.items()}
        everyone = self._workers.all_gather((tokens, rows))
        # In the order of the data, independent of the worker that computed a pair.
        known = dict(sorted(entry for _, own in everyone for entry in own.items()))
        names = next(iter(known.values())).keys()
        table = BatchTable(
            tokens=sum(count for count, _ in everyone),
            pairs=len(known),
            columns={
                name: torch.tensor([row[name] for row in known.values()], dtype=torch.float64)
                for name in names
            },
        )
        facts = self._facts(table, step)
        order = {place: number for number, place in enumerate(known)}
        return [
            facts.select(torch.tensor([order[place] for place in batch.indices])).to(self._device)
            for batch, _ in batches
        ]

    def commit(self) -> None:
        """Keep the state after a batch whose update is made."""
        self._state = self._after

    def state_dict(self) -> dict[str, Any]:
        """Return the state between batches, as plain data for a checkpoint."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._state = dict(state)

    def _facts(self, table: BatchTable, step: int) -> BatchFacts:
        draw = make_generator("kept pairs", self._config.seed, step)
        facts, self._after = compute_batch_facts(
            self._config.objective, table, self._state, generator=draw
        )
        return facts
