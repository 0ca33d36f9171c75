"""What benchmarks share: time in interleaved rounds, peak memory, the machine in words."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
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

    def over(self, other: Times) -> float:
        """Return the median over rounds of this one's seconds over the other's."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(one / two for one, two in pairs)


def interleaved(
    things: Mapping[str, Callable[[], Any]], *, rounds: int, clock: Clock
) -> dict[str, Times]:
    """Time things one after the other, round after round; a first round is not counted.

    A machine that slows down for a while so slows all of them. The `cpu` clock counts what this
    process computes, whatever else the machine does.
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
    """The most memory that this process holds, over what it held at first, in MiB; Linux alone."""

    def __init__(self) -> None:
        self._before = _status("VmRSS")
        self.forget()

    def forget(self) -> None:
        """Let the peak count from here."""
        Path("/proc/self/clear_refs").write_text("5")

    def reached(self) -> float:
        """Return by how much the peak lies above what was held at the beginning."""
        return _status("VmHWM") - self._before


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in /proc/self/status")


def machine(*packages: str) -> dict[str, Any]:
    """Describe the machine, the versions and the moment."""
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "commit": _commit(),
        **{package: version(package) for package in ("torch", "transformers", *packages)},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
