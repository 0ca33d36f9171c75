"""The batches of a training: which pairs this worker computes at which step, encoded in order.

A global batch is divided into the portions of one forward pass, over workers and rounds. Batches
are encoded when they are asked for, or ahead of that by other processes.
"""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import CutCount, PairEncoder, batch_order, count_steps
from chip_core.data.encodings import Encodings
from chip_core.data.preferences import Pairs
from chip_core.data.tensors import PairBatch
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Portion:
    """The pairs of one worker's forward pass."""

    places: tuple[int, ...]  # of the pairs in the training data
    counts: bool = True  # False: the pass is made, for the others wait for it, and adds nothing


def portions(
    places: Sequence[int],
    *,
    micro_batch: int,
    workers: int = 1,
    lengths: Sequence[int] | None = None,
) -> list[list[Portion]]:
    """Return each worker's portions of a global batch, round by round.

    Every worker has equally many, of nearly equal size, none above `micro_batch`: a worker that
    has fewer pairs makes a pass that does not count. The portions of a round are of like length,
    so that no worker waits long for another.

    Args:
        places: the pairs of the batch, in their order.
        micro_batch: most pairs of a pass.
        workers: how many share the batch.
        lengths: of every training pair, by place; None: the batch's order is kept.
    """
    rounds = math.ceil(len(places) / (micro_batch * workers))
    count = rounds * workers
    ordered = list(places)
    if lengths is not None and count > 1:
        # Longest first: what does not fit into memory is known at once.
        ordered.sort(key=lambda place: -lengths[place])
    cuts = [math.ceil(len(ordered) * number / count) for number in range(count + 1)]
    cut = [
        Portion(places=tuple(ordered[start:end]))
        if end > start
        else Portion(places=tuple(ordered[:1]), counts=False)
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]
    return [cut[rank::workers] for rank in range(workers)]


#: Batches that each process has ready at most.
AHEAD = 2

#: Encodes pairs, named by their places, of an epoch.
Encode = Callable[[Sequence[int], int], PairBatch]


class Loader:
    """Encodes batches in order. What encoding raises comes out where the batch is asked for."""

    def __init__(
        self, encode: Encode, schedule: Sequence[tuple[Portion, int]], *, processes: int = 0
    ) -> None:
        """Start the processes.

        Args:
            encode: `PairEncoder.batch`; changes nothing that its caller reads.
            schedule: portions and their epochs, in order.
            processes: how many encode ahead; 0: each batch is encoded when it is asked for.
        """
        self.waited = 0.0  # seconds that batches were waited for
        encoded = _Encoded(encode, schedule)
        self._batches: Iterator[PairBatch | Exception]
        if processes == 0:
            self._batches = (encoded[number] for number in range(len(schedule)))
        else:
            self._batches = iter(
                DataLoader(
                    encoded,
                    batch_size=None,
                    shuffle=False,
                    num_workers=min(processes, len(schedule)),
                    prefetch_factor=AHEAD,
                    collate_fn=_as_it_is,
                    worker_init_fn=_leave_ctrl_c,
                    # Forked: a new interpreter would import for five seconds, and a processor
                    # composed here (chip_core/models/processing.py) cannot be sent to one.
                    multiprocessing_context="fork",
                )
            )

    def next(self) -> PairBatch:
        """Return the next batch of the schedule."""
        began = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - began
        if isinstance(batch, Exception):
            raise batch
        return batch


class _Encoded(Dataset[Any]):
    """The schedule as DataLoader takes it."""

    def __init__(self, encode: Encode, schedule: Sequence[tuple[Portion, int]]) -> None:
        self._encode, self._schedule = encode, schedule

    def __len__(self) -> int:
        return len(self._schedule)

    def __getitem__(self, number: int) -> PairBatch | Exception:
        portion, epoch = self._schedule[number]
        try:
            return self._encode(portion.places, epoch)
        except Exception as error:  # comes out of `next` in its own words, not in DataLoader's
            if get_worker_info() is not None:  # what is lost on the way from process to process
                error.add_note(traceback.format_exc())
            return error


def _leave_ctrl_c(number: int) -> None:
    """Let the training decide what a Ctrl-C at the terminal, which all processes get, comes to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    return batch


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
