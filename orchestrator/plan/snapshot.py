"""Save and read which trials each study of a work directory plans.

The ledger knows for whom a trial was executed. Who else has it in his table, this says.
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
_REPORT = Path("report", "provenance.json")  # has the same, of studies last run before it was kept


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial as a study has it."""

    arm: str
    seed: int | None  # None: the untrained model
    model: Mapping[str, Any]  # what the fingerprint holds of it
    data: Mapping[str, Any] | None  # the same; None of the untrained model


@dataclass(frozen=True, kw_only=True)
class PlanSnapshot:
    """What a study was when it was last run."""

    study: str
    file: str
    trials: Mapping[str, PlannedTrial]  # by fingerprint
    path: Path = Path()  # the same file, wherever the command was given
    time: float = 0.0  # when it was last run, in seconds since 1970
    began: float | None = None  # when it was first run; None: not noted
    changes: StudyChanges = StudyChanges()  # of the command line
    places: DataPaths = DataPaths()  # where its benchmarks' data lay

    def changed_by(self, changes: StudyChanges) -> StudyChanges:
        """Return its changes with further ones, which take the place of its own."""
        return StudyChanges(
            recipe=self.changes.recipe if changes.recipe is None else changes.recipe,
            seeds=self.changes.seeds if changes.seeds is None else changes.seeds,
            overrides={**self.changes.overrides, **changes.overrides},
        )

    def placed_by(self, places: DataPaths) -> DataPaths:
        """Return its places with others, which take the place of its own."""
        return DataPaths(
            benchmark_data=places.benchmark_data or self.places.benchmark_data,
            judge_replies=places.judge_replies or self.places.judge_replies,
        )


def save_plan_snapshot(plan: Plan, workdir: Path, *, runs: bool = True) -> PlanSnapshot:
    """Note what a study wants, before anything of it runs; return it as it is kept.

    Args:
        plan: the study's plan.
        workdir: where it is kept.
        runs: whether anything is to run; else what says the same already stays as it is.
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
    """Yield the studies of a work directory, by name; of one that cannot be read it is told.

    Args:
        workdir: the work directory.
        all_of_them: whether one that cannot be read is an error.

    Raises:
        UserError: there is such a one.
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
    """Return what a study was when it was last run; None where it was not, or nothing says."""
    folder = workdir / "studies" / study
    found = (_kept(folder / name) for name in (_FILE, _REPORT))
    return next((kept for kept in found if kept is not None), None)


def find_own_study(workdir: Path, name: str) -> PlanSnapshot | None:
    """Return a study that was run in a work directory, by its name; None where the name is no such.

    A path that is there, and the name of a shipped study, mean those.

    Raises:
        UserError: its file is gone.
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
    """Check that a study's name is not another file's in a work directory.

    A file that was moved, or changed, is still the study's; so is a copy of the same content, and
    what a cluster's job has of it.

    Raises:
        UserError: it is another's, which is there and has that name.
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
        return  # the same study, as another version of the package has it
    try:
        if kept.path.read_bytes() == path.read_bytes():
            return
        named = recipes.read_yaml(kept.path).get("study")
    except (OSError, ConfigError):
        return  # it is no study's file any more
    if named is None or variant_name(str(named), kept.changes) != plan.study.name:
        return
    raise UserError(
        f"{plan.study.source}: study: '{plan.study.name}' is in {workdir} the study of "
        f"{kept.path}: give one of them another name, or take another --workdir"
    )


def _kept(file: Path) -> PlanSnapshot | None:
    """Return what a file holds; None where it is not there or not as it was written."""
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
