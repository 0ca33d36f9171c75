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
from chip_core.places import Places
from orchestrator.plan import Plan
from orchestrator.study import Changes

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
    path: Path = Path()  # the same file, wherever the command was given
    time: float = 0.0  # when it was last run, in seconds since 1970
    began: float | None = None  # when it was first run; None: not noted
    changes: Changes = Changes()  # of the command line
    places: Places = Places()  # where its benchmarks' data lay


def keep_plan(plan: Plan, workdir: Path) -> KeptPlan:
    """Note what a study wants, before anything of it runs; return it as it is kept."""
    file = workdir / "studies" / plan.study.name / _FILE
    now = time.time()
    began = now
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        began = kept.get("began", kept["time"])
    changes, places = plan.study.changes, plan.places
    identities = list(plan.identities)
    place = {key: number for number, key in enumerate(identities)}
    write_json(
        file,
        {
            "study": plan.study.name,
            "file": plan.study.source,
            "path": str(Path(plan.study.source).absolute()),
            "time": now,
            "began": began,
            "changes": {
                "recipe": changes.recipe,
                "seeds": None if changes.seeds is None else list(changes.seeds),
                "overrides": dict(changes.overrides),
            },
            "places": {
                "benchmark_data": _text(places.benchmark_data),
                "judge_replies": _text(places.judge_replies),
            },
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
    return _read(json.loads(file.read_text(encoding="utf-8")))


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

    lay = {name: Path(place) for name, place in raw.get("places", {}).items() if place}
    return KeptPlan(
        study=raw["study"],
        file=raw["file"],
        path=Path(raw.get("path", raw["file"])),
        time=raw.get("time", 0.0),
        began=raw.get("began", raw.get("time")),
        changes=Changes(**raw.get("changes", {})),
        places=Places(**lay),
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


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
