"""The phases of a trial: where its time goes, and where it can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable

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
