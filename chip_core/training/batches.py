"""The pairs of a training or reference pass, and its batches: this worker's pairs at each step.

A global batch is divided over workers and rounds into portions, each the pairs of one forward pass.
Batches are encoded in order, when they are requested, or ahead of that by other processes.
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
from chip_core.data.batches import CutCount, PairEncoder, count_steps, iter_batch_indices
from chip_core.data.checks import ProcessorChecker
from chip_core.data.encodings import EncodingCache
from chip_core.data.formats.extra_columns import RowRequirements, row_requirements
from chip_core.data.preferences import Pairs, load_pairs
from chip_core.data.rejected_images import find_strategy
from chip_core.data.source import SHAPES
from chip_core.data.tensors import PairBatch
from chip_core.models import loading
from chip_core.results import Progress
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers, current_workers


def load_checked_pairs(
    config: TrialConfig,
    report: Callable[[Progress], None],
    requirements: RowRequirements | None = None,
) -> Pairs:
    """Load the pairs, and report the rows checked about once a second.

    Args:
        config: the trial.
        report: called with the progress of the check.
        requirements: the requirements on each row; None: those of the trial's objective.

    Raises:
        TrialError: the data or the model's processor cannot be read, or a row is bad and
            `on_bad_row` is `fail`.
    """
    last_report = time.monotonic()

    def on_row(done: int, total: int) -> None:
        nonlocal last_report
        if time.monotonic() - last_report >= 1.0:
            last_report = time.monotonic()
            report(Progress(phase="check data", done=done, total=total))

    needs_given = find_strategy(config.rejected_image.strategy).traits.needs_given
    # The embedded world's pairs need no check by the processor.
    has_files = config.data.source != SHAPES
    return load_pairs(
        config.data,
        on_row,
        rejected_images=needs_given and config.objective.needs_rejected_image,
        requirements=row_requirements(config.objective) if requirements is None else requirements,
        model=ProcessorChecker(loading.load_processor_only(config.model)) if has_files else None,
        processes=current_workers().size,
    )


def resolve_device(config: TrialConfig) -> torch.device:
    """Return the device that `engine.device` names on this machine.

    Raises:
        TrialError: it is cuda, but there is no GPU that computes in `model.dtype`.
    """
    requested = config.engine.device
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested != "cuda":
        return torch.device(requested)
    if not torch.cuda.is_available():
        raise TrialError("engine.device is cuda, but torch finds no GPU: choose auto or cpu")
    if config.model.dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrialError(
            f"model.dtype is bf16, but {torch.cuda.get_device_name()} does not compute in it: "
            "write model.dtype: fp32, or use a GPU of NVIDIA's Ampere or later"
        )
    # Of several GPUs, the one that was set for this process.
    return torch.device(requested, torch.cuda.current_device())


@dataclass(frozen=True, kw_only=True)
class Portion:
    """The pairs of one worker's forward pass."""

    indices: tuple[int, ...]  # indices of the pairs in the training data
    counts: bool = True  # False: the pass adds nothing, but other workers wait for it


def split_batch(
    indices: Sequence[int],
    *,
    micro_batch: int,
    workers: int = 1,
    lengths: Sequence[int] | None = None,
) -> list[list[Portion]]:
    """Divide a global batch into portions, round by round, and return those of each worker.

    All workers get equally many portions, of nearly equal size and at most `micro_batch` pairs. A
    worker that has fewer pairs makes a pass that does not count. The portions of a round have
    similar lengths, so that no worker waits long for another.

    Args:
        indices: the indices of the batch's pairs, in their order.
        micro_batch: the largest number of pairs of a pass.
        workers: the number of workers that share the batch.
        lengths: of every training pair, by index; None: the batch's order is kept.
    """
    rounds = math.ceil(len(indices) / (micro_batch * workers))
    count = rounds * workers
    sorted_indices = list(indices)
    if lengths is not None and count > 1:
        # Longest first, so that a pass that does not fit into memory fails at once.
        sorted_indices.sort(key=lambda index: -lengths[index])
    bounds = [math.ceil(len(sorted_indices) * index / count) for index in range(count + 1)]
    pieces = [
        Portion(indices=tuple(sorted_indices[start:end]))
        if end > start
        else Portion(indices=tuple(sorted_indices[:1]), counts=False)
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return [pieces[rank::workers] for rank in range(workers)]


#: The maximum number of batches that each process prepares ahead.
PREFETCH_BATCHES = 2

#: Encodes the pairs at these indices for an epoch.
EncodeBatch = Callable[[Sequence[int], int], PairBatch]


class BatchLoader:
    """Encodes batches in order; an encoding error is raised when its batch is requested."""

    def __init__(
        self, encode: EncodeBatch, schedule: Sequence[tuple[Portion, int]], *, processes: int = 0
    ) -> None:
        """Start the processes.

        Args:
            encode: `PairEncoder.batch`; it changes nothing that its caller reads.
            schedule: portions and their epochs, in order.
            processes: how many encode ahead; 0: each batch is encoded when it is requested.
        """
        self.wait_seconds = 0.0  # seconds spent waiting for batches
        encoded = _EncodedSchedule(encode, schedule)
        self._batches: Iterator[PairBatch | Exception]
        if processes == 0:
            self._batches = (encoded[index] for index in range(len(schedule)))
        else:
            self._batches = iter(
                DataLoader(
                    encoded,
                    batch_size=None,
                    shuffle=False,
                    num_workers=min(processes, len(schedule)),
                    prefetch_factor=PREFETCH_BATCHES,
                    collate_fn=_identity_collate,
                    worker_init_fn=_ignore_interrupts,
                    # Forked: a new interpreter would import for five seconds, and a processor
                    # composed here (chip_core/models/processing.py) cannot be sent to one.
                    multiprocessing_context="fork",
                )
            )

    def next_batch(self) -> PairBatch:
        """Return the next batch of the schedule."""
        began = time.perf_counter()
        batch = next(self._batches)
        self.wait_seconds += time.perf_counter() - began
        if isinstance(batch, Exception):
            raise batch
        return batch


class _EncodedSchedule(Dataset[Any]):
    """The schedule as a dataset for DataLoader."""

    def __init__(self, encode: EncodeBatch, schedule: Sequence[tuple[Portion, int]]) -> None:
        self._encode, self._schedule = encode, schedule

    def __len__(self) -> int:
        return len(self._schedule)

    def __getitem__(self, index: int) -> PairBatch | Exception:
        portion, epoch = self._schedule[index]
        try:
            return self._encode(portion.indices, epoch)
        except Exception as error:  # raised by `next` with its own message, not with DataLoader's
            if get_worker_info() is not None:  # the traceback is lost between processes
                error.add_note(traceback.format_exc())
            return error


def _ignore_interrupts(worker: int) -> None:
    """Ignore a Ctrl-C at the terminal, which all processes get: the training handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity_collate(batch: Any) -> Any:
    return batch


#: The default number of processes that encode ahead, if a GPU would wait for them.
DEFAULT_LOADER_PROCESSES = 2

#: A worker's portions of one step's global batch, each with its epoch.
StepPortions = list[tuple[Portion, int]]


class TrainingBatches:
    """One worker's share of every global batch."""

    def __init__(
        self,
        config: TrialConfig,
        *,
        processor: Any,
        pairs: Pairs,
        workers: Workers,
        encodings: EncodingCache | None = None,
    ) -> None:
        """Count the steps without encoding anything yet.

        Args:
            config: the trial.
            processor: the model's processor.
            pairs: the preference pairs.
            workers: the workers that share each batch.
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
        #: Counts the responses that were cut.
        self.cut_count = CutCount(workers)

    @property
    def may_be_void(self) -> bool:
        """Whether a rejected image may be the same as the image itself."""
        return self._encoder.may_be_void

    def encode_shortest_pair(self) -> PairBatch:
        """Return the pair of the first global batch that has the shortest responses."""
        lengths = {
            index: len(self._pairs[index].chosen) + len(self._pairs[index].rejected)
            for index in next(self._batch_indices())
        }
        return self._encoder.encode_batch([min(lengths, key=lambda index: lengths[index])])

    def list_step_portions(self, steps_done: int) -> list[StepPortions]:
        """Return this worker's portions of each step's global batch.

        Args:
            steps_done: the number of steps already made.
        """
        steps_per_epoch = len(self._pairs) // self._config.training.batch_size
        shares = []
        for step, indices in zip(range(self.steps), self._batch_indices(), strict=False):
            worker_portions = split_batch(
                indices,
                micro_batch=self._config.engine.micro_batch,
                workers=self._workers.size,
                lengths=self._pairs.lengths if self._config.engine.bucket else None,
            )
            epoch = step // steps_per_epoch
            shares.append([(portion, epoch) for portion in worker_portions[self._workers.rank]])
        return shares[steps_done:]

    def make_loader(self, shares: list[StepPortions], device: torch.device) -> BatchLoader:
        """Return a loader that encodes the portions of steps, in order.

        Args:
            shares: as `list_step_portions` returns them.
            device: the device of the training.
        """
        processes = self._config.engine.loader_workers
        if processes is None:
            processes = DEFAULT_LOADER_PROCESSES if device.type == "cuda" else 0
        portions_in_order = [portion for share in shares for portion in share]
        return BatchLoader(self._encoder.encode_batch, portions_in_order, processes=processes)

    def _batch_indices(self) -> Iterator[list[int]]:
        settings = self._config.training
        return iter_batch_indices(
            len(self._pairs),
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=self._config.seed,
        )
