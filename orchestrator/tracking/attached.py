"""Figures and files that come to a study's runs from beside: of people, of representations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.plan import Arm, Trial
from orchestrator.tracking.mlflow import tracking_uri
from orchestrator.tracking.mlflow_runs import ARM, KIND, SEED, arm_key
from orchestrator.tracking.mlflow_store import MlflowStore, Run, metric_name


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What is to be shown with a study's runs."""

    study: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    arms: Mapping[str, tuple[Arm, Mapping[str, float]]] = field(default_factory=dict)
    trials: list[tuple[Arm, Trial, Mapping[str, float]]] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)  # (file, artifact folder)


def attach(workdir: Path, uri: str | None, study: str, attached: Attached) -> str | None:
    """Show figures and files with a study's runs, as far as there are runs.

    Runs are only added to: none is made, ended or put in another's place.

    Args:
        workdir: the work directory.
        uri: the tracking URI; None as for a run of the study.
        study: the study's name.
        attached: what to show.

    Returns:
        What is to be said to the user where the study has no run; else None.

    Raises:
        UserError: the store cannot be used.
    """
    address = tracking_uri(workdir, uri)
    database = workdir.resolve() / "mlflow.db"
    own = address == f"sqlite:///{database}"
    missing = f"MLflow has no run of study {study}: the figures are in its report folder alone"
    if own and not database.exists():
        return missing
    store = MlflowStore(address, workdir.resolve() / "artifacts" if own else None)
    store.open(study)
    runs = {_slot(run): run for run in store.runs() if KIND in run.tags}
    wanted = {("study", "", ""): attached.study, ("base", "", ""): attached.base}
    wanted |= {("arm", arm_key(arm), ""): figures for arm, figures in attached.arms.values()}
    wanted |= {
        ("trial", arm_key(arm), str(trial.seed)): figures for arm, trial, figures in attached.trials
    }
    if ("study", "", "") not in runs:
        return missing
    for slot, figures in wanted.items():
        if figures and slot in runs:
            named = {metric_name(name): value for name, value in figures.items()}
            store.log_figures(runs[slot], named)
    for file, under in attached.files:
        store.upload_file(runs["study", "", ""], file, under)
    return None


def _slot(run: Run) -> tuple[str, str, str]:
    """Return what a run stands for; one that was superseded stands for nothing that is wanted."""
    return run.tags[KIND], run.tags.get(ARM, ""), run.tags.get(SEED, "")
