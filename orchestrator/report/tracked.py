"""Whether all of a study is tracked, or what waits and how it is sent."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from orchestrator.report.words import counted
from orchestrator.tracking.base import Waiting
from orchestrator.tracking.trouble import shown_address

_WORKDIR = Path("chip-runs")  # the command's own default


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
