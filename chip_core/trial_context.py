"""What an attempt at a trial gets beside its configuration: its place, its phases, its end."""

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
    """Return what reports progress, and ends the work there where it is asked to.

    A training ends by itself, after a checkpoint that all its workers write.

    Raises:
        StoppedError: from what is returned.
    """

    def told(progress: Progress) -> None:
        report(progress)
        if progress.phase != "train" and stop():
            raise StoppedError(f"stopped in '{progress.phase}', {progress.done}/{progress.total}")

    return told


def throttled(
    send: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[Progress], None]:
    """Return `send` for the first of each phase, and from then on every `REPORT_EVERY` seconds."""
    phase: str | None = None
    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal phase, due
        if progress.phase != phase or clock() >= due:
            send(progress)
            phase, due = progress.phase, clock() + REPORT_EVERY

    return report


class PhaseTimer:
    """Where a trial's time goes, one phase after the other."""

    def __init__(self, began: float | None, began_cpu: float | None) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._began = time.perf_counter() if began is None else began
        self._began_cpu = cpu_seconds() if began_cpu is None else began_cpu

    def end(self, phase: str) -> None:
        """End a phase; the next begins. One that comes again is added to what it was."""
        now, computed = time.perf_counter(), cpu_seconds()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._began
        self.cpu[phase] = self.cpu.get(phase, 0.0) + computed - self._began_cpu
        self._began, self._began_cpu = now, computed


@dataclass(frozen=True, kw_only=True)
class TrialContext:
    """Where an attempt lies, what it begins with, and who is told of it."""

    #: where config.json, curves.jsonl, model/, responses/, scores/ and the results go
    folder: Path
    #: told of each step, batch, benchmark and judge's reply
    report: Callable[[Progress], None] = lambda progress: None
    #: asked after each of them whether to end there; a training leaves a checkpoint
    stop: Callable[[], bool] = lambda: False
    #: where the benchmarks' data and the judges' replies lie
    places: DataPaths = field(default_factory=DataPaths)
    #: ask the base model as it is
    untrained: bool = False
    #: ask this trained model; do not train
    trained_model: Path | None = None
    #: an earlier attempt's folder: its trained model is taken over, or its newest whole checkpoint
    #: gone on from
    resume_from: Path | None = None
    #: folders of earlier attempts, newest first: answers of the same weights are taken over
    earlier: Sequence[Path] = ()
    #: the reference caches that the training may read
    caches: AvailableCaches | None = None
    #: the file that says where the study's own server is, which answers
    server: Path | None = None
    #: what is to be said of this attempt beside what it says itself
    notes: Sequence[str] = ()
    #: `time.perf_counter` when this process turned to the trial, before it imported anything
    began: float | None = None
    #: `cpu_seconds` (chip_core/utils/machine.py) at that time
    began_cpu: float | None = None
    #: called by all processes together, where those on other machines go on with what the first one
    #: left in `folder`
    share: Callable[[], None] = lambda: None

    @property
    def trains(self) -> bool:
        """Whether a model is to be trained, or a trained one taken over from an earlier attempt."""
        return not self.untrained and self.trained_model is None

    def spans(self) -> PhaseTimer:
        """Return a new clock of the trial's phases."""
        return PhaseTimer(self.began, self.began_cpu)

    def stopped_report(self) -> Callable[[Progress], None]:
        """Return what reports progress, and ends the attempt there where it is asked to stop."""
        return stop_on_request(self.stop, self.report)
