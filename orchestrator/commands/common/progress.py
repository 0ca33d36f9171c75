"""Say on the terminal how far a model's answers are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chip_core.results import Progress


class Told:
    """Says now and then where it is."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._told = 0.0

    def __call__(self, progress: Progress) -> None:
        """Say it, where ten seconds are over or a phase is."""
        now = time.monotonic()
        if progress.done < progress.total and now - self._told < 10:
            return
        self._told = now
        text = f"{progress.phase} {progress.done}/{progress.total}"
        rate, left = (progress.figures.get(name) for name in ("items_per_second", "seconds_left"))
        if rate is not None and left is not None:
            text += f", {rate:.3g} a second, {left:.0f} s left"
        self._console.print(text, markup=False, highlight=False)
