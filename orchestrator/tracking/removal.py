"""Delete the MLflow runs of removed trials and studies."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from orchestrator.plan.plan import BASE_ARM
from orchestrator.tracking.client import store_of
from orchestrator.tracking.projection import FINGERPRINT, slot_of


def forget_runs(
    workdir: Path, uri: str | None, study: str, fingerprints: Collection[str] | None
) -> int:
    """Delete runs of a study. MLflow's pages can restore them until `mlflow gc`.

    Args:
        workdir: the work directory.
        uri: the tracking URI; None: the same as for a run.
        study: name of the study.
        fingerprints: trials whose runs are deleted; None: all runs and the experiment.

    Returns:
        the number of deleted runs.

    Raises:
        UserError: the store cannot be used. No run is deleted then.
    """
    store = store_of(workdir, uri)
    if not store.open(study, make=False):  # no run was ever shown there
        return 0
    going = [
        run
        for run in store.runs()
        if fingerprints is None
        or (run.tags.get(FINGERPRINT) in fingerprints and slot_of(run)[0] in ("trial", BASE_ARM))
    ]
    for run in going:
        store.delete_run(run)
    if fingerprints is None:
        store.delete_experiment()
    return len(going)
