"""Which trial of a work directory is meant by a name."""

from __future__ import annotations

from pathlib import Path

from chip_core.errors import UserError
from chip_core.registry import suggestion
from orchestrator.ledger import Ledger, TrialRecord


def find_trained(workdir: Path, name: str) -> Path:
    """Return the folder of the attempt that trained a trial.

    Args:
        workdir: the work directory.
        name: the first characters of its fingerprint, or "ARM, seed N".

    Raises:
        UserError: no trained trial, or more than one, goes by that name.
    """
    trained = {mark: record for mark, record in Ledger(workdir).items() if record.model is not None}
    if not trained:
        raise UserError(f"no trained trial in {workdir}: run a study first, or name its --workdir")
    found = [
        mark
        for mark, record in trained.items()
        if name == _name(record) or (len(name) >= 4 and mark.startswith(name))
    ]
    if not found:
        choices = [_name(record) for record in trained.values()]
        raise UserError(f"no trained trial '{name}' in {workdir}: {suggestion(name, choices)}")
    if len(found) > 1:
        which = ", ".join(f"{mark[:16]} (study {trained[mark].study})" for mark in sorted(found))
        raise UserError(f"'{name}' is more than one trial: name its fingerprint: {which}")
    folder = trained[found[0]].model
    assert folder is not None
    return workdir / folder


def _name(record: TrialRecord) -> str:
    return f"{record.arm}, seed {record.seed}"
