"""What a trial tells while it runs, and what it leaves in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What lies in a trial's folder.
CONFIG, CURVES, MODEL, RESULT = "config.json", "curves.jsonl", "model", "result.json"
CHECKPOINTS = "checkpoints"  # folder; see chip_core/training/checkpoint.py
TRAINED = "trained.json"  # beside a model that is whole


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a trial is."""

    phase: str  # "start", "check data", "train", "score shapes"
    done: int
    total: int
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One benchmark's figures and where its item outcomes and responses lie."""

    metrics: dict[str, float]  # full name -> value; an undefined metric is not there
    items: int
    scores: str  # file in the trial's folder
    responses: str
    #: what has to be known beside the figures: "protocol", "scorer", "judge", "n", "missing",
    #: "unreadable" where there is any, …
    how: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial came to."""

    steps: int
    evaluations: dict[str, Evaluation]  # "report/shapes" -> its figures
    seconds: dict[str, float]  # by phase
    #: pairs, rows skipped, responses and tokens cut; empty where nothing was trained
    data: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # where it was resumed, what was not used
    #: how the work was done, by engine setting: `prefix_sharing` is `on` or `off (reason)`
    engine: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)  # CPU seconds of one worker, by phase
    machine: str = ""  # the device it ran on; empty: noted by a version that did not note it

    @property
    def metrics(self) -> dict[str, float]:
        """All figures by full name."""
        return {
            name: value
            for evaluation in self.evaluations.values()
            for name, value in evaluation.metrics.items()
        }


def read_result(folder: Path) -> TrialResult | None:
    """Return what a trial's folder holds; None where it did not end."""
    if not (folder / RESULT).exists():
        return None
    raw = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    raw["evaluations"] = {key: Evaluation(**value) for key, value in raw["evaluations"].items()}
    return TrialResult(**raw)
