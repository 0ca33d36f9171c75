"""Remove a trial or a study from a work directory, in a safe order.

What another study has in its table stays. The ledger is written before a file is deleted, so that a
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
from orchestrator.plan.snapshot import PlanSnapshot, plan_snapshots
from orchestrator.state.ledger import ENGINES, Ledger, study_lock
from orchestrator.state.trial_lookup import find_trial, trial_name
from orchestrator.storage.binding import storage_of
from orchestrator.storage.download import trial_key

_GOING = ".removed-"  # prefix of a folder being deleted; leftovers of a crash are deleted, too


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a removal deletes."""

    study: str | None  # study whose folder is deleted; None: only trials
    trials: Mapping[str, str]  # fingerprint -> display name
    shared: Mapping[str, tuple[str, ...]]  # trials that stay -> other studies that have them
    shown_by: tuple[str, ...]  # the studies that had the trials
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
    if Ledger(workdir).bad:
        raise UserError(
            f"{workdir}: its ledger has a line that is not as it was written, and what it said may "
            "be of what is to go: `chip-ablate run` of the study finds it again: remove after that"
        )
    plans = {plan.study: plan for plan in plan_snapshots(workdir, all_of_them=True)}
    if name in plans:
        return _of_study(workdir, name, plans)
    try:
        fingerprint = find_trial(workdir, name)
    except UserError as error:
        known = join_names(plans)
        raise UserError(f"{error}; studies that were run there: {known}") from None
    holders = _holders(fingerprint, plans)
    if len(holders) > 1:
        raise UserError(
            f"trial {fingerprint[:16]} stands in the tables of {len(holders)} studies, "
            f"{join_names(holders)}: remove the studies that are to go, it goes with the last"
        )
    return _made(workdir, None, [fingerprint], {}, holders)


def remove(workdir: Path, what: Removal) -> None:
    """Remove trials and study from ledger and disk. The tracker deletes the MLflow runs."""
    ledger, remote = Ledger(workdir), storage_of(workdir)
    for fingerprint in what.trials:
        if remote is not None:  # first, since results left there would count as done
            remote.remove_all(trial_key(fingerprint))
        ledger.removed(fingerprint)
        _delete(_trial_folder(workdir, fingerprint))
    if what.study is not None:
        _delete(workdir / "studies" / what.study)
        _delete(workdir / ENGINES / what.study)


@contextmanager
def no_running_study(workdir: Path) -> Iterator[None]:
    """Lock every study of a work directory.

    Raises:
        UserError: one of them is running.
    """
    studies = {path.stem for path in (workdir / "ledger").glob("*.lock")}
    studies |= {plan.study for plan in plan_snapshots(workdir)}
    with ExitStack() as held:
        for study in sorted(studies):
            held.enter_context(study_lock(workdir, study))
        yield


def _of_study(workdir: Path, study: str, plans: Mapping[str, PlanSnapshot]) -> Removal:
    """Return a study's removal, with trials of cells that its file no longer has."""
    own = set(plans[study].trials)
    for fingerprint, record in Ledger(workdir).items():
        if any(attempt.study == study for attempt in record.history.values()):
            own.add(fingerprint)
    sharing = {fingerprint: tuple(other for other in _holders(fingerprint, plans) if other != study)
               for fingerprint in own}  # fmt: skip
    going = sorted(fingerprint for fingerprint, others in sharing.items() if not others)
    return _made(
        workdir,
        study,
        going,
        {fingerprint: others for fingerprint, others in sharing.items() if others},
        (study,),
    )


def _made(
    workdir: Path,
    study: str | None,
    fingerprints: list[str],
    shared: Mapping[str, tuple[str, ...]],
    shown_by: tuple[str, ...],
) -> Removal:
    known = dict(Ledger(workdir).items())
    trials = {
        fingerprint: trial_name(known[fingerprint])
        for fingerprint in fingerprints
        if fingerprint in known
    }
    folders = [_trial_folder(workdir, fingerprint) for fingerprint in trials]
    folders += [] if study is None else [workdir / "studies" / study]
    there = tuple(folder for folder in folders if folder.is_dir())
    remote = storage_of(workdir)
    beside = 0
    if remote is not None:
        going = {trial_key(fingerprint) for fingerprint in trials}
        sizes = remote.sizes("trials").items()
        beside = sum(size for key, size in sizes if "/".join(key.split("/")[:2]) in going)
    return Removal(
        study=study,
        trials=trials,
        shared=shared,
        shown_by=shown_by,
        folders=there,
        bytes=beside
        + sum(
            path.stat().st_size
            for folder in there
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        ),
    )


def _holders(fingerprint: str, plans: Mapping[str, PlanSnapshot]) -> tuple[str, ...]:
    return tuple(study for study, plan in plans.items() if fingerprint in plan.trials)


def _trial_folder(workdir: Path, fingerprint: str) -> Path:
    return workdir / "trials" / fingerprint[:16]


def _delete(folder: Path) -> None:
    """Delete a folder: rename it first, which is atomic, then delete its files."""
    going = folder.with_name(f"{_GOING}{folder.name}")
    if going.exists():
        shutil.rmtree(going)
    if folder.exists():
        folder.rename(going)
        shutil.rmtree(going)
