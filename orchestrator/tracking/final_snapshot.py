"""Save the arms' aggregates at the end of each run of a study."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chip_core.utils.files import append_record, read_records
from orchestrator.plan.plan import Plan
from orchestrator.tracking.base import ArmView, FinalSnapshot, Status
from orchestrator.tracking.projection import arm_key, held_by

_FILE = "closed.jsonl"  # in a study's folder


def keep_snapshot(
    workdir: Path,
    study: str,
    arms: Sequence[ArmView],
    status: Status,
    ended: float | None,
    *,
    since: float = math.inf,
) -> None:
    """Save how a run ended, before a tracker shows it.

    Args:
        workdir: the work directory.
        study: the study's name.
        arms: views of its arms.
        status: status of the study.
        ended: end of its last trial.
        since: an equal snapshot saved after this time is not saved again.
    """
    noted = [
        {
            "arm": arm_key(view.arm),
            "holds": held_by(view.arm),
            "figures": {k: v for k, v in view.figures.items() if math.isfinite(v)},
            "tags": dict(view.tags),
            "status": view.status,
        }
        for view in arms
    ]
    record = {"time": time.time(), "status": status, "ended": ended, "arms": noted}
    file = workdir / "studies" / study / _FILE
    last: dict[str, Any] = next(reversed(read_records(file)), {})
    before = last.get("time")
    if {**last, "time": record["time"]} == record and isinstance(before, float) and before >= since:
        return
    append_record(file, record)


def kept_snapshots(workdir: Path, plan: Plan) -> list[FinalSnapshot]:
    """Return the saved ends of a study's runs, in order, with the arms that its plan still has."""
    arms = {arm_key(arm): arm for arm in plan.arms}

    def views(noted: Sequence[dict[str, Any]]) -> Iterator[ArmView]:
        for entry in noted:
            arm = arms.get(entry["arm"])
            if arm is not None and entry["holds"].items() <= held_by(arm).items():
                figures, tags, status = entry["figures"], entry["tags"], entry["status"]
                yield ArmView(arm=arm, figures=figures, tags=tags, status=status)

    return [
        FinalSnapshot(
            time=record["time"],
            status=record["status"],
            ended=record["ended"],
            arms=tuple(views(record["arms"])),
        )
        for record in read_records(workdir / "studies" / plan.study.name / _FILE)
    ]
