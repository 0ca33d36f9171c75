"""Which trials each study of a work directory wants: noted when it runs, read by who asks later.

The ledger knows for whom a trial was executed. Who else has it in his table, this says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.files import write_json
from orchestrator.plan import Plan

_FILE = "plan.json"  # in a study's folder
_REPORT = Path("report", "provenance.json")  # has the same, of studies last run before it was kept


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A trial as a study has it."""

    arm: str
    seed: int | None  # None: the untrained model
    model: Mapping[str, Any]  # what the fingerprint holds of it
    data: Mapping[str, Any] | None  # the same; None of the untrained model


@dataclass(frozen=True, kw_only=True)
class KeptPlan:
    """What a study was when it was last run."""

    study: str
    file: str
    trials: Mapping[str, Wanted]  # by fingerprint


def keep_plan(plan: Plan, workdir: Path) -> None:
    """Note what a study wants, before anything of it runs."""
    identities = list(plan.identities)
    place = {key: number for number, key in enumerate(identities)}
    write_json(
        workdir / "studies" / plan.study.name / _FILE,
        {
            "study": plan.study.name,
            "file": plan.study.source,
            "time": time.time(),
            "identities": [dict(plan.identities[key]) for key in identities],
            "trials": [
                {
                    "fingerprint": trial.fingerprint,
                    "arm": trial.arm,
                    "seed": trial.seed,
                    "model": place[trial.config.model.model_dump_json()],
                    "data": None if trial.untrained else place[trial.config.data.model_dump_json()],
                }
                for trial in plan.trials
            ],
        },
    )


def kept_plans(workdir: Path) -> Iterator[KeptPlan]:
    """Yield the studies of a work directory, by name."""
    folder = workdir / "studies"
    for study in sorted(folder.glob("[!.]*")):
        for file in (study / _FILE, study / _REPORT):
            if file.is_file():
                yield _read(json.loads(file.read_text(encoding="utf-8")))
                break


def _read(raw: Mapping[str, Any]) -> KeptPlan:
    identities = raw.get("identities")

    def identity(found: Any) -> Any:
        return identities[found] if identities is not None and found is not None else found

    return KeptPlan(
        study=raw["study"],
        file=raw["file"],
        trials={
            entry["fingerprint"]: Wanted(
                arm=entry["arm"],
                seed=entry["seed"],
                model=identity(entry["model"]),
                data=identity(entry["data"]),
            )
            for entry in raw["trials"]
        },
    )
