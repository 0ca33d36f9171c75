"""Describe a job that an executor runs, the files that it needs, and how a run of jobs is stopped.

A run stops at once, after checkpoints, or when running trials have ended.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from chip_core.config.benchmark import DataPaths
from chip_core.config.trial import TrialConfig
from chip_core.reference_cache.spec import AvailableCaches, BuildShard

#: File in a job's folder that makes it end at its next step or batch.
STOP_FILE = "stop"
#: Phase in which a job's files are copied to its machine.
COPYING_PHASE = "copy from the storage"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One step of an attempt at a trial, or a part of a reference pass, that a worker runs.

    A trial has two steps: training and answering the benchmarks, then scoring the answers by rules
    and judges, which needs neither the model nor a GPU.
    """

    id: str  # short, unique in a run; safe in file names
    name: str  # for people
    config: TrialConfig  # with the benchmarks that are still to be scored
    folder: Path  # folder of the attempt
    untrained: bool = False  # evaluate the untrained model
    trained_model: Path | None = None  # evaluate this model of an earlier attempt
    resume_from: Path | None = None  # earlier attempt with a model or checkpoints
    data_paths: DataPaths = DataPaths()  # where benchmarks' data and judges' replies are
    earlier_attempts: tuple[Path, ...] = ()  # earlier attempts, whose answers can be reused
    caches: AvailableCaches | None = None  # reference caches that it can read
    server: Path | None = None  # file with the address of the study's inference server
    shard: BuildShard | None = None  # only build this part of a reference pass
    answers: Path | None = None  # only score the answers in this attempt's folder
    can_stop_early: bool = False  # whether early stopping may end its training
    notes: tuple[str, ...] = ()  # notes on this attempt
    #: copies the first worker's files in `folder` to all workers' machines; a collective call
    share_files: Callable[[], None] | None = None

    @property
    def is_training(self) -> bool:
        """Whether it starts or resumes a training."""
        return not (self.untrained or self.trained_model or self.shard or self.is_scoring)

    @property
    def is_scoring(self) -> bool:
        """Whether it scores existing answers, without a model and on a CPU."""
        return self.answers is not None

    @property
    def num_workers(self) -> int:
        """The number of processes: of a training as configured, else one."""
        return self.config.engine.workers_per_trial if self.is_training else 1

    @property
    def num_gpus(self) -> float:
        """The number of GPUs that it holds."""
        return 0.0 if self.is_scoring else self.num_workers * self.config.engine.gpus_per_worker

    def scoring_job(self) -> Job:
        """Return the next step, which scores this one's answers in the same folder."""
        prefix, _, attempt = self.id.rpartition("-")
        return replace(
            self,
            id=f"{prefix}-score-{attempt}",
            answers=self.folder,
            trained_model=None,
            resume_from=None,
            earlier_attempts=(),
            caches=None,
            can_stop_early=False,
        )


#: The signals that stop a run: from a user at the terminal, or a machine that shuts down.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_STOP_MESSAGE = (
    "\n"
    "stopping: running trials write a checkpoint and end, and no new ones start; interrupt again "
    "to stop now\n"
)


class StopRequest:
    """A request to stop a run. Executors check it, and any part of a run can make it."""

    def __init__(self) -> None:
        """Create it without a request."""
        self._is_requested = False
        self._limit: str | None = None
        self._drain_reason: str | None = None

    @property
    def is_requested(self) -> bool:
        """Whether running trials should write a checkpoint and end."""
        return self._is_requested

    @property
    def limit(self) -> str | None:
        """The limit that made the request, if it was not a person."""
        return self._limit

    @property
    def is_draining(self) -> bool:
        """Whether no new job should start. Running ones continue, unless `is_requested`."""
        return self._drain_reason is not None or self._is_requested

    @property
    def drain_reason(self) -> str | None:
        """Why no new job should start, if `drain` was called."""
        return self._drain_reason

    def request(self, limit: str | None = None) -> None:
        """Request that running trials write a checkpoint and end, and that no new one starts.

        Args:
            limit: the limit that was reached, if it is the reason; the first request counts.
        """
        if not self._is_requested:
            self._limit = limit
        self._is_requested = True

    def drain(self, reason: str) -> None:
        """Request that no new trial starts, while running ones continue to their end.

        Args:
            reason: reason to print at the end; the first one counts.
        """
        self._drain_reason = self._drain_reason or reason

    @contextmanager
    def install_signal_handlers(self) -> Iterator[None]:
        """Treat the first SIGINT or SIGTERM as a stop request; the second stops at once.

        Raises:
            KeyboardInterrupt: at the second signal, wherever the main thread is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle_signal(number: int, frame: FrameType | None) -> None:
            if self._is_requested:
                raise KeyboardInterrupt
            self.request()
            os.write(2, _STOP_MESSAGE.encode())  # print is not reentrant

        previous_handlers: dict[signal.Signals, Callable[..., object] | int | None] = {}
        try:
            for number in STOP_SIGNALS:
                previous_handlers[number] = signal.signal(number, handle_signal)
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


@contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Restore the caller's signal handlers at the end, if the body replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
