"""Remove a trial or a study from a work directory, in a safe order.

Trials in another study's table are kept. The ledger is written before a file is deleted, so that a
crash leaves a trial either complete or removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.registry import join_names
from orchestrator.plan.plan import trial_key
from orchestrator.plan.snapshot import PlanSnapshot, iter_plan_snapshots
from orchestrator.state.ledger import ENGINES_FOLDER, Ledger, lock_study
from orchestrator.state.trial_lookup import find_trial, trial_name
from orchestrator.storage.binding import find_storage

_REMOVED_PREFIX = (
    ".removed-"  # prefix of a folder being deleted; leftovers of a crash are deleted, too
)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a removal deletes."""

    study: str | None  # study whose folder is deleted; None: only trials
    trials: Mapping[str, str]  # fingerprint -> display name
    shared: Mapping[str, tuple[str, ...]]  # trials that stay -> other studies that have them
    studies: tuple[str, ...]  # the studies that had the trials
    folders: tuple[Path, ...]
    bytes: int


def plan_removal(workdir: Path, name: str) -> Removal:
    """Return what the removal of a study or a trial would delete.

    Args:
        workdir: the work directory.
        name: a study that ran there, else the first characters of a trial's fingerprint, or
            "ARM, seed N".

    Raises:
        UserError: there is no such study or trial, or several studies have the trial.
    """
    if Ledger(workdir).damaged_lines:
        raise UserError(
            f"{workdir}: its ledger has a damaged line, which may belong to what you want to "
            "remove: run the study with `chip-ablate run` to recover the line, then remove"
        )
    plans = {plan.study: plan for plan in iter_plan_snapshots(workdir, strict=True)}
    if name in plans:
        return _plan_study_removal(workdir, name, plans)
    try:
        fingerprint = find_trial(workdir, name)
    except UserError as error:
        study_names = join_names(plans)
        raise UserError(f"{error}; studies that ran there: {study_names}") from None
    holders = _holders(fingerprint, plans)
    if len(holders) > 1:
        raise UserError(
            f"trial {fingerprint[:16]} is in the tables of {len(holders)} studies, "
            f"{join_names(holders)}: remove those studies instead: the trial is removed with the "
            "last one"
        )
    return _make_removal(workdir, None, [fingerprint], {}, holders)


def apply_removal(workdir: Path, removal: Removal) -> None:
    """Remove trials and study from ledger and disk. The tracker deletes the MLflow runs."""
    ledger, remote = Ledger(workdir), find_storage(workdir)
    for fingerprint in removal.trials:
        if remote is not None:  # first, since results left there would count as done
            remote.remove_all(trial_key(fingerprint))
        ledger.record_removal(fingerprint)
        _delete_folder(_trial_folder(workdir, fingerprint))
    if removal.study is not None:
        _delete_folder(workdir / "studies" / removal.study)
        _delete_folder(workdir / ENGINES_FOLDER / removal.study)


@contextmanager
def lock_all_studies(workdir: Path) -> Iterator[None]:
    """Lock every study of a work directory.

    Raises:
        UserError: one of them is running.
    """
    studies = {path.stem for path in (workdir / "ledger").glob("*.lock")}
    studies |= {plan.study for plan in iter_plan_snapshots(workdir)}
    with ExitStack() as locks:
        for study in sorted(studies):
            locks.enter_context(lock_study(workdir, study))
        yield


def _plan_study_removal(workdir: Path, study: str, plans: Mapping[str, PlanSnapshot]) -> Removal:
    """Return a study's removal, with trials of cells that its file no longer has."""
    fingerprints = set(plans[study].trials)
    for fingerprint, record in Ledger(workdir).items():
        if any(attempt.study == study for attempt in record.history.values()):
            fingerprints.add(fingerprint)
    other_holders = {
        fingerprint: tuple(holder for holder in _holders(fingerprint, plans) if holder != study)
        for fingerprint in fingerprints
    }
    removed = sorted(fingerprint for fingerprint, holders in other_holders.items() if not holders)
    return _make_removal(
        workdir,
        study,
        removed,
        {fingerprint: holders for fingerprint, holders in other_holders.items() if holders},
        (study,),
    )


def _make_removal(
    workdir: Path,
    study: str | None,
    fingerprints: list[str],
    shared: Mapping[str, tuple[str, ...]],
    studies: tuple[str, ...],
) -> Removal:
    records = dict(Ledger(workdir).items())
    trials = {
        fingerprint: trial_name(records[fingerprint])
        for fingerprint in fingerprints
        if fingerprint in records
    }
    folders = [_trial_folder(workdir, fingerprint) for fingerprint in trials]
    folders += [] if study is None else [workdir / "studies" / study]
    existing_folders = tuple(folder for folder in folders if folder.is_dir())
    remote = find_storage(workdir)
    remote_bytes = 0
    if remote is not None:
        trial_keys = {trial_key(fingerprint) for fingerprint in trials}
        sizes = remote.sizes("trials").items()
        remote_bytes = sum(
            size for key, size in sizes if "/".join(key.split("/")[:2]) in trial_keys
        )
    return Removal(
        study=study,
        trials=trials,
        shared=shared,
        studies=studies,
        folders=existing_folders,
        bytes=remote_bytes
        + sum(
            path.stat().st_size
            for folder in existing_folders
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        ),
    )


def _holders(fingerprint: str, plans: Mapping[str, PlanSnapshot]) -> tuple[str, ...]:
    return tuple(study for study, plan in plans.items() if fingerprint in plan.trials)


def _trial_folder(workdir: Path, fingerprint: str) -> Path:
    return workdir / "trials" / fingerprint[:16]


def _delete_folder(folder: Path) -> None:
    """Delete a folder: rename it first, which is atomic, then delete its files."""
    renamed_folder = folder.with_name(f"{_REMOVED_PREFIX}{folder.name}")
    if renamed_folder.exists():
        shutil.rmtree(renamed_folder)
    if folder.exists():
        folder.rename(renamed_folder)
        shutil.rmtree(renamed_folder)
