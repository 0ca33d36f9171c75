"""Helpers of benchmarks: time in interleaved rounds, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Clock = Literal["wall", "cpu"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of one thing, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Return the median round."""
        return statistics.median(self.seconds)

    def compute_median_ratio(self, other: Times) -> float:
        """Return the median over rounds of this one's seconds over the other's."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(one / two for one, two in pairs)


def time_interleaved(
    things: Mapping[str, Callable[[], Any]], *, rounds: int, clock: Clock
) -> dict[str, Times]:
    """Time things one after the other, round after round; a first round is not counted.

    So a machine that is slow for a while slows all of them. The `cpu` clock counts what this
    process computes, independent of other load.
    """
    now = _CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for number in range(rounds + 1):
        for name, thing in things.items():
            began = now()
            thing()
            if number:
                seconds[name].append(now() - began)
    return {name: Times(seconds=tuple(values)) for name, values in seconds.items()}


class PeakMemory:
    """The peak memory of this process above its initial memory, in MiB; Linux only."""

    def __init__(self) -> None:
        self._before = _read_status("VmRSS")
        self.reset()

    def reset(self) -> None:
        """Reset the peak."""
        Path("/proc/self/clear_refs").write_text("5")

    def read_peak(self) -> float:
        """Return the peak since the last reset, above the initial memory."""
        return _read_status("VmHWM") - self._before


def _read_status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in /proc/self/status")
