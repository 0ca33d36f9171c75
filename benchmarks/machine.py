"""Facts that every benchmark reports with its figures: the machine, the versions, the date."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from chip_core.utils.machine import cpu_count, cpu_name

_VERSIONS = ("torch", "transformers", "peft", "trl", "ray", "mlflow", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return the machine, its software, and the time, without new imports."""
    import psutil

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": cpu_name(),
        "cores": cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "gpu": _find_gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _find_commit(),
        "versions": {name: found for name in _VERSIONS if (found := _find_version(name))},
        "environment": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
            if name in os.environ
        },
    }


def summarize_repeats(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of repeats."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "repeats": len(values),
    }


def format_machine(machine: dict[str, Any]) -> str:
    """Format a machine as one line."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return (
        f"{machine['date']}: {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gib']} GiB, load {machine['load_before']}, "
        f"{machine['gpu'] or 'no GPU'}; Python {machine['python']}, {versions}"
    )


def _find_gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"


def _find_commit() -> str | None:
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def _find_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
