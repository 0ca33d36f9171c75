"""Save and load the planned trials of each study of a work directory.

The ledger names the study that executed a trial. The snapshots name all studies that have it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core import recipes
from chip_core.config.benchmark import DataPaths
from chip_core.utils.errors import ConfigError, UserError, warn_once
from chip_core.utils.files import read_checksummed, write_checksummed
from orchestrator.plan.plan import Plan
from orchestrator.study.load import is_study
from orchestrator.study.model import StudyChanges
from orchestrator.study.variant import variant_name

_FILE = "plan.json"  # in a study's folder
_REPORT = Path("report", "provenance.json")  # the same, of versions without `_FILE`


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial of a study."""

    arm: str
    seed: int | None  # None: the untrained model
    model: Mapping[str, Any]  # identity in the fingerprint
    data: Mapping[str, Any] | None  # the same; None for the untrained model


@dataclass(frozen=True, kw_only=True)
class PlanSnapshot:
    """A study's plan when it last ran."""

    study: str
    file: str
    trials: Mapping[str, PlannedTrial]  # by fingerprint
    path: Path = Path()  # absolute path of `file`
    time: float = 0.0  # of the last run, in seconds since 1970
    began: float | None = None  # time of the first run; None: not recorded
    changes: StudyChanges = StudyChanges()  # of the command line
    places: DataPaths = DataPaths()  # where its benchmarks' data were

    def changed_by(self, changes: StudyChanges) -> StudyChanges:
        """Return the snapshot's changes, overridden by further ones."""
        return StudyChanges(
            recipe=self.changes.recipe if changes.recipe is None else changes.recipe,
            seeds=self.changes.seeds if changes.seeds is None else changes.seeds,
            overrides={**self.changes.overrides, **changes.overrides},
        )

    def placed_by(self, places: DataPaths) -> DataPaths:
        """Return the snapshot's data paths, overridden by others."""
        return DataPaths(
            benchmark_data=places.benchmark_data or self.places.benchmark_data,
            judge_replies=places.judge_replies or self.places.judge_replies,
        )


def save_plan_snapshot(plan: Plan, workdir: Path, *, runs: bool = True) -> PlanSnapshot:
    """Save a study's plan before it runs, and return the snapshot.

    Args:
        plan: the study's plan.
        workdir: the work directory.
        runs: whether any trial is to run. If not, a file with the same content is not rewritten.
    """
    file = workdir / "studies" / plan.study.name / _FILE
    now = time.time()
    before = _kept(file)
    began = now if before is None or before.began is None else before.began
    changes, places = plan.study.changes, plan.places
    identities = list(plan.identities)
    place = {key: number for number, key in enumerate(identities)}
    record = {
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
    }
    if before is not None and not runs:
        same = {**record, "time": before.time}
        if same == read_checksummed(file):
            return before
    write_checksummed(file, record)
    return _read(read_checksummed(file))


def plan_snapshots(workdir: Path, *, all_of_them: bool = False) -> Iterator[PlanSnapshot]:
    """Yield the snapshots of a work directory in order of name. Warn of any that cannot be read.

    Args:
        workdir: the work directory.
        all_of_them: raise an error instead of the warning.

    Raises:
        UserError: a snapshot cannot be read, and `all_of_them` is true.
    """
    folder = workdir / "studies"
    for study in sorted(folder.glob("[!.]*")):
        files = [file for file in (study / _FILE, study / _REPORT) if file.exists()]
        found = next((kept for file in files if (kept := _kept(file)) is not None), None)
        if found is not None:
            yield found
        elif files:
            line = (
                f"{files[0]} is not as it was written: what study {study.name} wants is not "
                "known until `chip-ablate run` writes it again from the study's file"
            )
            if all_of_them:
                raise UserError(line)
            warn_once(line)


def plan_snapshot(workdir: Path, study: str) -> PlanSnapshot | None:
    """Return the snapshot of a study; None if it never ran or the snapshot cannot be read."""
    folder = workdir / "studies" / study
    found = (_kept(folder / name) for name in (_FILE, _REPORT))
    return next((kept for kept in found if kept is not None), None)


def find_own_study(workdir: Path, name: str) -> PlanSnapshot | None:
    """Return the snapshot of a study that ran in a work directory; None if no study has the name.

    An existing path or the name of a shipped study takes precedence: the result is None.

    Raises:
        UserError: the study's file is gone.
    """
    if is_study(name):
        return None
    kept = next((plan for plan in plan_snapshots(workdir) if plan.study == name), None)
    if kept is not None and not kept.path.is_file():
        raise UserError(
            f"study {name}: its file {kept.path} is gone: put it back, or name the file where it "
            "lies now"
        )
    return kept


def require_same_file(plan: Plan, workdir: Path) -> None:
    """Check that no other study file has a study's name in a work directory.

    A file that was moved or changed is still the study's, and so are a copy with the same content
    and the copy of a cluster job.

    Raises:
        UserError: another existing file has that name.
    """
    kept = plan_snapshot(workdir, plan.study.name)
    path = Path(plan.study.source).absolute()
    if kept is None or not kept.path.is_absolute() or not kept.path.is_file():
        return
    jobs = (workdir / "jobs").resolve()
    if kept.path.resolve() == path.resolve() or path.resolve().is_relative_to(jobs):
        return
    shipped = kept.path.parent.name == path.parent.name == "ablations"
    if shipped and kept.path.name == path.name:
        return  # the same shipped study, of another version of the package
    try:
        if kept.path.read_bytes() == path.read_bytes():
            return
        named = recipes.read_yaml(kept.path).get("study")
    except (OSError, ConfigError):
        return  # no longer a study file
    if named is None or variant_name(str(named), kept.changes) != plan.study.name:
        return
    raise UserError(
        f"{plan.study.source}: study: '{plan.study.name}' is in {workdir} the study of "
        f"{kept.path}: give one of them another name, or take another --workdir"
    )


def _kept(file: Path) -> PlanSnapshot | None:
    """Return the snapshot in a file; None if it is missing or damaged."""
    try:
        return _read(read_checksummed(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _read(raw: Mapping[str, Any]) -> PlanSnapshot:
    identities = raw.get("identities")

    def identity(found: Any) -> Any:
        return identities[found] if identities is not None and found is not None else found

    lay = {name: Path(place) for name, place in raw.get("places", {}).items() if place}
    return PlanSnapshot(
        study=raw["study"],
        file=raw["file"],
        path=Path(raw.get("path", raw["file"])),
        time=raw.get("time", 0.0),
        began=raw.get("began", raw.get("time")),
        changes=StudyChanges(**raw.get("changes", {})),
        places=DataPaths(**lay),
        trials={
            entry["fingerprint"]: PlannedTrial(
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
