"""What MLflow shows of trials and studies that were removed: into its bin, not destroyed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from orchestrator.tracking.mlflow import tracking_uri
from orchestrator.tracking.mlflow_runs import FINGERPRINT, KIND
from orchestrator.tracking.mlflow_store import MlflowStore, connect
from orchestrator.tracking.names import EXPERIMENT, spelled
from orchestrator.tracking.trouble import check_reachable, is_new

_OF_TRIALS = ("trial", "base")


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
    address = tracking_uri(workdir, uri)
    store = _Bin(address, None)
    if not store.take_up(study):  # no run was ever shown there
        return 0
    going = [
        run
        for run in store.runs()
        if fingerprints is None
        or (
            run.tags.get(FINGERPRINT) in fingerprints
            and run.tags.get(KIND, "").removeprefix("superseded ") in _OF_TRIALS
        )
    ]
    for run in going:
        store.delete(run.id)
    if fingerprints is None:
        store.delete_experiment()
    return len(going)


class _Bin(MlflowStore):
    """An experiment that is there already, and what can be deleted of it."""

    def take_up(self, experiment: str) -> bool:
        """Connect, make nothing; return whether there is such an experiment."""
        with self._told():
            check_reachable(self.uri)
            if is_new(self.uri):
                return False
            self._client = connect(self.uri)
            known = self._client.get_experiment_by_name(spelled(experiment, EXPERIMENT))
        if known is None or known.lifecycle_stage == "deleted":
            return False
        self._experiment = known.experiment_id
        return True

    def delete(self, run: str) -> None:
        """Delete a run."""
        with self._told():
            self._client.delete_run(run)

    def delete_experiment(self) -> None:
        """Delete the experiment."""
        with self._told():
            self._client.delete_experiment(self._experiment)
