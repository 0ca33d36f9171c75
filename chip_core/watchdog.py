"""End a process that hangs."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable
from pathlib import Path

from chip_core.results import Progress


class Watchdog:
    """End this process where its job makes no progress, and leave where it hung.

    By `faulthandler`, which waits in a thread that needs no interpreter: it also ends a process
    whose interpreter is held by a call that never returns.
    """

    def __init__(self, path: Path, *, begin_within: float, stall_after: float | None) -> None:
        """Nothing is watched yet.

        Args:
            path: the file for where it hung; it is gone where the job ended.
            begin_within: seconds until its first progress.
            stall_after: seconds between two; None: as long as it takes.
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

    def watching(self, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return `report`, which shows that the job goes on; a wait for Tune is no hanging job."""

        def watched(progress: Progress) -> None:
            faulthandler.cancel_dump_traceback_later()
            report(progress)
            self._arm(self._later)

        return watched

    def _arm(self, seconds: float | None) -> None:
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)
