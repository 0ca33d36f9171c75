"""Find a trial of a work directory by name or fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chip_core.utils.errors import UserError
from chip_core.utils.registry import suggest
from orchestrator.state.ledger import Ledger, TrialRecord
from orchestrator.storage.download import fetch_trained_attempt

MIN_PREFIX_LENGTH = 4  # hex digits of a fingerprint that identify a trial


def find_trained_attempt(workdir: Path, name: str) -> Path:
    """Return the folder of the attempt that trained a trial, weights included.

    Args:
        workdir: the work directory.
        name: the first characters of its fingerprint, or "ARM, seed N".

    Raises:
        UserError: no trained trial, or more than one, has that name.
        StorageError: the storage cannot be read.
    """
    trained = {
        fingerprint: record
        for fingerprint, record in Ledger(workdir).items()
        if record.model is not None
    }
    folder = trained[_find_fingerprint(workdir, name, trained, "trained trial")].model
    assert folder is not None
    return fetch_trained_attempt(workdir, folder)


def find_trial(workdir: Path, name: str) -> str:
    """Return the fingerprint of a trial that was started.

    Args:
        workdir: the work directory.
        name: the first characters of its fingerprint, or "ARM, seed N"; "base" is the untrained
            model.

    Raises:
        UserError: no trial, or more than one, has that name.
    """
    return _find_fingerprint(workdir, name, dict(Ledger(workdir).items()), "trial")


def trial_name(record: TrialRecord) -> str:
    """Return a trial's display name: its arm and its seed."""
    return f"{record.arm}, seed {record.seed}" if record.seed is not None else f"{record.arm}"


def _find_fingerprint(
    workdir: Path, name: str, records: Mapping[str, TrialRecord], kind: str
) -> str:
    if not records:
        raise UserError(
            f"no {kind} in {workdir}: run a study first, or use --workdir to name its work "
            "directory"
        )

    def has_prefix(fingerprint: str) -> bool:
        return len(name) >= MIN_PREFIX_LENGTH and fingerprint.startswith(name.lower())

    matches = [
        fingerprint
        for fingerprint, record in records.items()
        if name == trial_name(record) or has_prefix(fingerprint)
    ]
    if not matches:
        choices = [trial_name(record) for record in records.values()]
        raise UserError(f"no {kind} '{name}' in {workdir}: {suggest(name, choices)}")
    if len(matches) > 1:
        choices_text = ", ".join(
            f"{fingerprint[:16]} ({trial_name(records[fingerprint])}, "
            f"study {records[fingerprint].study})"
            for fingerprint in sorted(matches)
        )
        raise UserError(f"'{name}' matches more than one trial: use a fingerprint: {choices_text}")
    return matches[0]
