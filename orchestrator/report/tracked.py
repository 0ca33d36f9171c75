"""What is left of a study and how to go on: trials to run, runs that MLflow lacks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from orchestrator.report.words import counted
from orchestrator.study import Study, level_text
from orchestrator.tracking.base import Waiting
from orchestrator.tracking.trouble import shown_address

_WORKDIR = Path("chip-runs")  # the command's own default


def run_command(study: Study, workdir: Path) -> str:
    """Return the command that runs what is left of a study, or of a variant of it."""
    changes = study.changes
    words = ["chip-ablate", "run", study.source]
    if changes.recipe is not None:
        words += ["--recipe", changes.recipe]
    if changes.seeds is not None:
        words += ["--seeds", *map(str, changes.seeds)]
    for key, value in changes.overrides.items():
        nested = isinstance(value, (list, dict))
        words += ["--set", f"{key}={json.dumps(value) if nested else level_text(value)}"]
    if workdir != _WORKDIR:
        words += ["--workdir", str(workdir)]
    return shlex.join(words)


def sync_command(study: str, workdir: Path, tracking_uri: str | None) -> str:
    """Return the command that sends what waits; a password is not shown in it."""
    words = ["chip-ablate", "sync", study]
    if workdir != _WORKDIR:
        words += ["--workdir", str(workdir)]
    if tracking_uri is not None:
        words += ["--tracking-uri", shown_address(tracking_uri)]
    return shlex.join(words)


def tracked_lines(waiting: Waiting | None, sync: str) -> list[str]:
    """Say whether all is tracked; else what waits, why, and what sends it."""
    if waiting is None:
        return ["all tracked"]
    what = f"{counted(len(waiting.trials), 'trial')} and " if waiting.trials else ""
    return [f"not tracked yet: {what}the study's own run: {waiting.reason}", f"send it: {sync}"]


def untracked_json(waiting: Waiting | None, sync: str) -> dict[str, Any] | None:
    """Return the same as data; None where all is tracked."""
    if waiting is None:
        return None
    return {"trials": list(waiting.trials), "reason": waiting.reason, "command": sync}
