"""Where things lie that change no figure by lying there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class DataPaths:
    """Folders and files of the machine that a trial runs on."""

    #: `--benchmark-data`: a folder for each benchmark, named as it, in its own published layout
    benchmark_data: Path | None = None
    judge_cache: Path | None = None  # where judges' replies are kept, for all trials
    judge_replies: Path | None = None  # `--judge-replies`: replies in place of a judge's

    def data(self, benchmark: str) -> Path | None:
        """Return a benchmark's folder, whether or not it is there; of my.module:Mine it is
        my.module.Mine.
        """
        if self.benchmark_data is None:
            return None
        return self.benchmark_data / benchmark.replace(":", ".")
