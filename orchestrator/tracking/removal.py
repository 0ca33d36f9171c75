"""Delete the MLflow runs of removed trials and studies (`mlflow gc` empties)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from orchestrator.plan.plan import BASE
from orchestrator.tracking.client import store_of
from orchestrator.tracking.projection import FINGERPRINT, slot_of


def forget_runs(
    workdir: Path, uri: str | None, study: str, fingerprints: Collection[str] | None
) -> int:
    """Delete runs of a study, as MLflow does: `mlflow gc` destroys them, its pages restore them.

    Args:
        workdir: the work directory.
        uri: where runs are kept; None: as for a run.
        study: whose experiment.
        fingerprints: of the trials whose runs go; None: all runs, and the experiment.

    Returns:
        How many runs that is.

    Raises:
        UserError: the store cannot be used; nothing has gone then.
    """
    store = store_of(workdir, uri)
    if not store.open(study, make=False):  # no run was ever shown there
        return 0
    going = [
        run
        for run in store.runs()
        if fingerprints is None
        or (run.tags.get(FINGERPRINT) in fingerprints and slot_of(run)[0] in ("trial", BASE))
    ]
    for run in going:
        store.delete_run(run)
    if fingerprints is None:
        store.delete_experiment()
    return len(going)
