"""What an attempt at a trial gets beside its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chip_core.config.benchmark import DataPaths
from chip_core.phases import PhaseTimer, stop_on_request
from chip_core.reference_cache.spec import AvailableCaches
from chip_core.results import Progress


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
