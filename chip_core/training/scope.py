"""Losses that look at other pairs, exact over passes and workers.

Where a global batch is computed in one pass, that pass says all. Else the pairs' numbers are
gathered first, by a pass without gradients where the objective's scope is `scores`; each pair's
loss is then its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from chip_core.config.trial import TrialConfig
from chip_core.data.tensors import PairBatch
from chip_core.objectives.global_batch import BatchFacts, BatchTable, State, batch_facts
from chip_core.utils.seeding import generator
from chip_core.utils.workers import Workers

#: Returns the columns of a batch's pairs; see `Policy.table_columns`.
Columns = Callable[[PairBatch], Mapping[str, Tensor]]


class GlobalBatchScope:
    """What a training's objective knows of each global batch, and carries from one to the next."""

    def __init__(self, config: TrialConfig, workers: Workers, device: torch.device) -> None:
        """Begin without a state.

        Args:
            config: the trial.
            workers: who share each batch.
            device: where it is trained.
        """
        self._config, self._workers, self._device = config, workers, device
        method = config.objective.resolved_method
        self.scope = config.objective.scope
        self.has_state = method is not None and method.state is not None
        self._state: State = {}
        self._after: State = {}

    def own(self, batch: PairBatch, step: int) -> Callable[[BatchTable], BatchFacts]:
        """Return what makes the facts of a batch that one pass computes.

        Args:
            batch: the pass.
            step: counted from 1.
        """
        order = torch.tensor(batch.places).argsort()  # of the data, as `gather` has it

        def facts(table: BatchTable) -> BatchFacts:
            columns = {name: values.cpu()[order] for name, values in table.columns.items()}
            known = self._facts(replace(table, columns=columns), step)
            return known.of(order.argsort()).to(self._device)

        return facts

    def gather(
        self, batches: Sequence[tuple[PairBatch, bool]], columns: Columns, step: int
    ) -> list[BatchFacts]:
        """Return the facts of each of this worker's passes.

        Args:
            batches: its passes, each with whether it counts.
            columns: computes a pass's columns; asked of every pass, so that workers meet.
            step: counted from 1.
        """
        tokens, rows = 0, dict[int, dict[str, float]]()
        for batch, counts in batches:
            said = columns(batch) if self.scope == "scores" else {}
            values = {name: column.tolist() for name, column in said.items()}
            if counts:
                tokens += int(batch.chosen.mask.sum())
                for number, place in enumerate(batch.places):
                    rows[place] = {name: column[number] for name, column in values.items()}
        everyone = self._workers.gathered((tokens, rows))
        # In the order of the data, whoever computed what.
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
            facts.of(torch.tensor([order[place] for place in batch.places])).to(self._device)
            for batch, _ in batches
        ]

    def commit(self) -> None:
        """Keep the state after a batch: its update is made."""
        self._state = self._after

    def state_dict(self) -> dict[str, Any]:
        """Return what is carried on, as plain data for a checkpoint."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._state = dict(state)

    def _facts(self, table: BatchTable, step: int) -> BatchFacts:
        draw = generator("kept pairs", self._config.seed, step)
        facts, self._after = batch_facts(self._config.objective, table, self._state, draw=draw)
        return facts
