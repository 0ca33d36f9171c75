"""Save and load what each study of a work directory was when it ran: its trials, its benchmarks.

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
from orchestrator.plan.benchmark_identities import Identities
from orchestrator.plan.plan import Plan
from orchestrator.study.load import is_study
from orchestrator.study.model import StudyChanges
from orchestrator.study.variant import variant_name

_PLAN_FILE = "plan.json"  # in a study's folder
_PROVENANCE_FILE = Path("report", "provenance.json")  # the same, of versions without `_PLAN_FILE`


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
    data_paths: DataPaths = DataPaths()  # where its benchmarks' data were

    def merge_changes(self, changes: StudyChanges) -> StudyChanges:
        """Return the snapshot's changes, overridden by further ones."""
        return StudyChanges(
            recipe=self.changes.recipe if changes.recipe is None else changes.recipe,
            seeds=self.changes.seeds if changes.seeds is None else changes.seeds,
            overrides={**self.changes.overrides, **changes.overrides},
        )

    def merge_data_paths(self, data_paths: DataPaths) -> DataPaths:
        """Return the snapshot's data paths, overridden by others."""
        return DataPaths(
            benchmark_data=data_paths.benchmark_data or self.data_paths.benchmark_data,
            judge_replies=data_paths.judge_replies or self.data_paths.judge_replies,
        )


def save_plan_snapshot(plan: Plan, workdir: Path, *, will_run: bool = True) -> PlanSnapshot:
    """Save a study's plan before it runs, and return the snapshot.

    Args:
        plan: the study's plan.
        workdir: the work directory.
        will_run: whether any trial is to run. If not, a file with the same content is kept.
    """
    file = workdir / "studies" / plan.study.name / _PLAN_FILE
    now = time.time()
    previous = _try_load(file)
    began = now if previous is None or previous.began is None else previous.began
    changes, data_paths = plan.study.changes, plan.data_paths
    identities = list(plan.identities)
    identity_index = {key: number for number, key in enumerate(identities)}
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
            "benchmark_data": _path_text(data_paths.benchmark_data),
            "judge_replies": _path_text(data_paths.judge_replies),
        },
        "identities": [dict(plan.identities[key]) for key in identities],
        "trials": [
            {
                "fingerprint": trial.fingerprint,
                "arm": trial.arm,
                "seed": trial.seed,
                "model": identity_index[trial.config.model.model_dump_json()],
                "data": None
                if trial.untrained
                else identity_index[trial.config.data.model_dump_json()],
            }
            for trial in plan.trials
        ],
    }
    if previous is not None and not will_run:
        unchanged = {**record, "time": previous.time}
        if unchanged == read_checksummed(file):
            return previous
    write_checksummed(file, record)
    return _parse_snapshot(read_checksummed(file))


def iter_plan_snapshots(workdir: Path, *, strict: bool = False) -> Iterator[PlanSnapshot]:
    """Yield the snapshots of a work directory in order of name. Warn of any that cannot be read.

    Args:
        workdir: the work directory.
        strict: raise an error instead of the warning.

    Raises:
        UserError: a snapshot cannot be read, and `strict` is true.
    """
    folder = workdir / "studies"
    for study in sorted(folder.glob("[!.]*")):
        files = [file for file in (study / _PLAN_FILE, study / _PROVENANCE_FILE) if file.exists()]
        snapshot = next((loaded for file in files if (loaded := _try_load(file)) is not None), None)
        if snapshot is not None:
            yield snapshot
        elif files:
            message = (
                f"{files[0]} has changed since it was written: the plan of study {study.name} is "
                "not known until `chip-ablate run` writes it again from the study's file"
            )
            if strict:
                raise UserError(message)
            warn_once(message)


def load_plan_snapshot(workdir: Path, study: str) -> PlanSnapshot | None:
    """Return the snapshot of a study; None if it never ran or the snapshot cannot be read."""
    folder = workdir / "studies" / study
    candidates = (_try_load(folder / name) for name in (_PLAN_FILE, _PROVENANCE_FILE))
    return next((snapshot for snapshot in candidates if snapshot is not None), None)


def find_run_study(workdir: Path, name: str) -> PlanSnapshot | None:
    """Return the snapshot of a study that ran in a work directory; None if no study has the name.

    An existing path or the name of a shipped study takes precedence: the result is None.

    Raises:
        UserError: the study's file is gone.
    """
    if is_study(name):
        return None
    snapshot = next(
        (candidate for candidate in iter_plan_snapshots(workdir) if candidate.study == name), None
    )
    if snapshot is not None and not snapshot.path.is_file():
        raise UserError(
            f"study {name}: its file {snapshot.path} is gone: restore it, or give the file's new "
            "path"
        )
    return snapshot


def require_same_study_file(plan: Plan, workdir: Path) -> None:
    """Check that no other study file has a study's name in a work directory.

    A file that was moved or changed is still the study's, and so are a copy with the same content
    and the copy of a cluster job.

    Raises:
        UserError: another existing file has that name.
    """
    snapshot = load_plan_snapshot(workdir, plan.study.name)
    path = Path(plan.study.source).absolute()
    if snapshot is None or not snapshot.path.is_absolute() or not snapshot.path.is_file():
        return
    jobs_folder = (workdir / "jobs").resolve()
    if snapshot.path.resolve() == path.resolve() or path.resolve().is_relative_to(jobs_folder):
        return
    is_shipped = snapshot.path.parent.name == path.parent.name == "ablations"
    if is_shipped and snapshot.path.name == path.name:
        return  # the same shipped study, of another version of the package
    try:
        if snapshot.path.read_bytes() == path.read_bytes():
            return
        study_name = recipes.read_yaml(snapshot.path).get("study")
    except (OSError, ConfigError):
        return  # no longer a study file
    if study_name is None or variant_name(str(study_name), snapshot.changes) != plan.study.name:
        return
    raise UserError(
        f"{plan.study.source}: study: '{plan.study.name}' is already the name of {snapshot.path} "
        f"in {workdir}: rename one of them, or use another --workdir"
    )


def read_identities(workdir: Path, study: str) -> Identities:
    """Return the identities of a study's last run; empty without one or if the file is damaged."""
    file = _identities_file(workdir, study)
    try:
        saved_identities = read_checksummed(file)
        if all(isinstance(identity, dict) for identity in saved_identities.values()):
            return saved_identities
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        pass
    warn_once(
        f"{file} has changed since it was written: the identities of the benchmarks' data are "
        "computed from the data; `chip-ablate run` writes the file again"
    )
    return {}


def is_identities_file_damaged(workdir: Path, study: str) -> bool:
    """Return whether a study's file of identities is damaged."""
    file = _identities_file(workdir, study)
    return file.exists() and not read_identities(workdir, study)


def save_identities(workdir: Path, study: str, identities: Identities) -> None:
    """Save the identities of a run."""
    write_checksummed(
        _identities_file(workdir, study),
        {key: dict(identity) for key, identity in identities.items()},
    )


def _try_load(file: Path) -> PlanSnapshot | None:
    """Return the snapshot in a file; None if it is missing or damaged."""
    try:
        return _parse_snapshot(read_checksummed(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _parse_snapshot(raw: Mapping[str, Any]) -> PlanSnapshot:
    identities = raw.get("identities")

    def resolve_identity(reference: Any) -> Any:
        return (
            identities[reference] if identities is not None and reference is not None else reference
        )

    data_paths = {name: Path(path) for name, path in raw.get("places", {}).items() if path}
    return PlanSnapshot(
        study=raw["study"],
        file=raw["file"],
        path=Path(raw.get("path", raw["file"])),
        time=raw.get("time", 0.0),
        began=raw.get("began", raw.get("time")),
        changes=StudyChanges(**raw.get("changes", {})),
        data_paths=DataPaths(**data_paths),
        trials={
            entry["fingerprint"]: PlannedTrial(
                arm=entry["arm"],
                seed=entry["seed"],
                model=resolve_identity(entry["model"]),
                data=resolve_identity(entry["data"]),
            )
            for entry in raw["trials"]
        },
    )


def _path_text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _identities_file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / "benchmarks.json"
