"""Print the commands to go on with after a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.report.formatting import counted
from orchestrator.tracking.address import shown_address
from orchestrator.tracking.base import Waiting

_NAMED = 3  # of what is refused
_WORKDIR = Path("chip-runs")  # the command's own default


def same_command(given: Sequence[str] | None) -> str:
    """Return the command that goes on: the one that was given, without an address's secrets."""
    if given is None:
        return "the same command"
    return shlex.join(["chip-ablate", *(shown_address(word) for word in given)])


def sync_command(study: str, workdir: Path, tracking_uri: str | None) -> str:
    """Return the command that sends what waits; a password is not shown in it."""
    words = ["chip-ablate", "sync", study]
    if workdir != _WORKDIR:
        words += ["--workdir", str(workdir)]
    if tracking_uri is not None:
        words += ["--tracking-uri", shown_address(tracking_uri)]
    return shlex.join(words)


def tracking_lines(
    waiting: Waiting | None, sync: str, refused: Mapping[str, str] | None = None
) -> list[str]:
    """Say whether all is tracked; else what is refused, and what waits, why, and what sends it."""
    never = _never(refused) if refused else None
    if waiting is None:
        return ["all tracked" if never is None else f"all tracked but {never}"]
    what = [counted(len(waiting.trials), "trial")] if waiting.trials else []
    what += ["the study's own run"] if waiting.study else []
    return [
        f"not tracked yet: {' and '.join(what)}: {waiting.reason}",
        f"send it: {sync}",
        *([] if never is None else [f"not tracked: {never}"]),
    ]


def _never(refused: Mapping[str, str]) -> str:
    """Name what MLflow does not take, the first few."""
    names = ", ".join(list(refused)[:_NAMED])
    more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
    return (
        f"what MLflow does not take: {names}{more} ({next(iter(refused.values()))}): it is in the "
        "report"
    )


def untracked_json(waiting: Waiting | None, sync: str) -> dict[str, Any] | None:
    """Return the same as data; None where all is tracked."""
    if waiting is None:
        return None
    return {"trials": list(waiting.trials), "reason": waiting.reason, "command": sync}
