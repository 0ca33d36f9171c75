"""The batches of a training: which pairs this worker computes at which step, encoded in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import CutCount, PairEncoder, batch_order, count_steps
from chip_core.data.encodings import Encodings
from chip_core.data.loader import Loader, Portion, portions
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers

#: Processes that encode ahead where none are asked for and a GPU would wait for them.
LOADERS = 2

#: A worker's portions of one step's global batch, each with its epoch.
Share = list[tuple[Portion, int]]


class TrainingBatches:
    """One worker's share of every global batch."""

    def __init__(
        self,
        config: TrialConfig,
        *,
        processor: Any,
        pairs: Pairs,
        workers: Workers,
        encodings: Encodings | None = None,
    ) -> None:
        """Count the steps; encode nothing yet.

        Args:
            config: the trial.
            processor: the model's.
            pairs: the preference pairs.
            workers: who share each batch.
            encodings: of the same processor, kept by this process from trial to trial.

        Raises:
            TrialError: there is less than one batch of pairs.
        """
        settings = config.training
        self.steps = count_steps(
            len(pairs),
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
        )
        if self.steps == 0:
            raise TrialError(
                f"no full batch: {len(pairs)} pairs, training.batch_size {settings.batch_size}"
            )
        self._config, self._pairs, self._workers = config, pairs, workers
        self._encoder = PairEncoder(processor, config, pairs, encodings)
        #: How many responses were cut.
        self.cut = CutCount(workers)

    @property
    def may_be_void(self) -> bool:
        """Whether a rejected image may come out as the image itself."""
        return self._encoder.may_be_void

    def shortest_pair(self) -> PairBatch:
        """Return that pair of the first global batch whose responses are shortest."""
        lengths = {
            place: len(self._pairs[place].chosen) + len(self._pairs[place].rejected)
            for place in next(self._order())
        }
        return self._encoder.batch([min(lengths, key=lambda place: lengths[place])])

    def shares(self, after: int) -> list[Share]:
        """Return this worker's portions of each step's global batch.

        Args:
            after: how many steps were made already.
        """
        steps_an_epoch = len(self._pairs) // self._config.training.batch_size
        shares = []
        for step, places in zip(range(self.steps), self._order(), strict=False):
            divided = portions(
                places,
                micro_batch=self._config.engine.micro_batch,
                workers=self._workers.size,
                lengths=self._pairs.lengths if self._config.engine.bucket else None,
            )
            epoch = step // steps_an_epoch
            shares.append([(portion, epoch) for portion in divided[self._workers.rank]])
        return shares[after:]

    def loader(self, shares: list[Share], device: torch.device) -> Loader:
        """Return what encodes the portions of steps, in order.

        Args:
            shares: of `shares`.
            device: where they are computed with.
        """
        processes = self._config.engine.loader_workers
        if processes is None:
            processes = LOADERS if device.type == "cuda" else 0
        portions_in_order = [portion for share in shares for portion in share]
        return Loader(self._encoder.batch, portions_in_order, processes=processes)

    def _order(self) -> Iterator[list[int]]:
        settings = self._config.training
        return batch_order(
            len(self._pairs),
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=self._config.seed,
        )
