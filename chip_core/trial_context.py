"""The context of a trial's attempt: its folder, its phases and how it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip_core.config.benchmark import DataPaths
from chip_core.reference_cache.spec import AvailableCaches
from chip_core.results import Progress
from chip_core.utils.errors import StoppedError
from chip_core.utils.machine import cpu_seconds

#: Seconds between two reports of one phase.
REPORT_EVERY = 1.0


def stop_on_request(
    stop: Callable[[], bool], report: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    """Return a callback that reports progress and, on a stop request, ends the work.

    A training ends itself, after a checkpoint that all its workers write.

    Raises:
        StoppedError: raised by the returned callback.
    """

    def report_or_stop(progress: Progress) -> None:
        report(progress)
        if progress.phase != "train" and stop():
            raise StoppedError(f"stopped in '{progress.phase}', {progress.done}/{progress.total}")

    return report_or_stop


def throttle(
    send: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[Progress], None]:
    """Return `send`, called at the start of each phase and then every `REPORT_EVERY` seconds."""
    phase: str | None = None
    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal phase, due
        if progress.phase != phase or clock() >= due:
            send(progress)
            phase, due = progress.phase, clock() + REPORT_EVERY

    return report


class PhaseTimer:
    """The time that each phase of a trial takes."""

    def __init__(self, began: float | None, began_cpu: float | None) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._began = time.perf_counter() if began is None else began
        self._began_cpu = cpu_seconds() if began_cpu is None else began_cpu

    def end(self, phase: str) -> None:
        """End a phase and begin the next. The times of a repeated phase are added up."""
        now, computed = time.perf_counter(), cpu_seconds()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._began
        self.cpu[phase] = self.cpu.get(phase, 0.0) + computed - self._began_cpu
        self._began, self._began_cpu = now, computed


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """The folder, inputs and callbacks of an attempt."""

    #: where config.json, curves.jsonl, model/, responses/, scores/ and the results go
    folder: Path
    #: called at each step, batch, benchmark and judge's reply
    report: Callable[[Progress], None] = lambda progress: None
    #: called after each of them: whether to stop there; a training leaves a checkpoint
    stop: Callable[[], bool] = lambda: False
    #: where the benchmarks' data and the judges' replies are
    places: DataPaths = field(default_factory=DataPaths)
    #: evaluate the base model as it is
    untrained: bool = False
    #: evaluate this trained model; do not train
    trained_model: Path | None = None
    #: an earlier attempt's folder: its trained model is reused, or its newest complete checkpoint
    #: resumed
    resume_from: Path | None = None
    #: folders of earlier attempts, newest first: answers of the same weights are reused
    earlier: Sequence[Path] = ()
    #: the reference caches that the training may read
    caches: AvailableCaches | None = None
    #: the file with the address of the study's own server, which answers
    server: Path | None = None
    #: notes on this attempt, in addition to its own
    notes: Sequence[str] = ()
    #: `time.perf_counter` when this process began the trial, before it imported anything
    began: float | None = None
    #: `cpu_seconds` (chip_core/utils/machine.py) at that time
    began_cpu: float | None = None
    #: called by all processes together, when those on other machines need what the first one left
    #: in `folder`
    share: Callable[[], None] = lambda: None

    @property
    def trains(self) -> bool:
        """Whether a model is trained, or a trained one reused from an earlier attempt."""
        return not self.untrained and self.trained_model is None

    def make_timer(self) -> PhaseTimer:
        """Return a new timer of the trial's phases."""
        return PhaseTimer(self.began, self.began_cpu)

    def stopped_report(self) -> Callable[[Progress], None]:
        """Return a callback that reports progress and ends the attempt on a stop request."""
        return stop_on_request(self.stop, self.report)
