"""End a process that hangs."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable
from pathlib import Path

from chip_core.results import Progress


class Watchdog:
    """End this process if its job makes no progress, and record where it hung.

    It uses `faulthandler`, which waits in a thread that needs no interpreter: it also ends a
    process whose interpreter is held by a call that never returns.
    """

    def __init__(self, path: Path, *, begin_within: float, stall_after: float | None) -> None:
        """Create a watchdog that watches nothing yet.

        Args:
            path: the file that records where it hung; removed if the job ended.
            begin_within: seconds until the first progress.
            stall_after: seconds between two reports of progress; None: no limit.
        """
        self._path, self._first, self._later = path, begin_within, stall_after

    def __enter__(self) -> Watchdog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self._arm(self._first)
        return self

    def __exit__(self, *raised: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def watch(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return `report` as a sign of progress; time in it, waiting for Tune, is not counted."""

        def report_progress(progress: Progress) -> None:
            faulthandler.cancel_dump_traceback_later()
            report(progress)
            self._arm(self._later)

        return report_progress

    def _arm(self, seconds: float | None) -> None:
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)
