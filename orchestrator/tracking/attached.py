"""Figures and files that come to a study's runs from beside: of people, of representations."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip_core.files import append_record, read_records
from orchestrator.plan import Arm, Trial
from orchestrator.storage.place import artifacts_of
from orchestrator.tracking.mlflow import own_uri, tracking_uri
from orchestrator.tracking.mlflow_runs import ARM, FINGERPRINT, KIND, SEED, arm_key
from orchestrator.tracking.mlflow_store import MlflowStore, Run
from orchestrator.tracking.trouble import StoreAway, is_new

_Slot = tuple[str, str, str]
_STUDY: _Slot = ("study", "", "")


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What is to be shown with a study's runs."""

    study: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    arms: Mapping[str, tuple[Arm, Mapping[str, float]]] = field(default_factory=dict)
    trials: list[tuple[Arm, Trial, Mapping[str, float]]] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)  # (file, artifact folder)


def attach(workdir: Path, uri: str | None, study: str, attached: Attached) -> str | None:
    """Show figures and files with a study's runs, as far as there are runs, and keep the figures.

    Runs are only added to: none is made, ended or put in another's place.

    Args:
        workdir: the work directory.
        uri: the tracking URI; None as for a run of the study.
        study: the study's name.
        attached: what to show.

    Returns:
        What is to be said to the user where the study has no run or the store is away; else None.

    Raises:
        UserError: the store cannot be used.
    """
    record = {
        "time": time.time(),
        "figures": [
            {"slot": slot, "fingerprint": mark, "figures": dict(figures)}
            for slot, mark, figures in _wanted(attached)
            if figures
        ],
    }
    append_record(_file(workdir, study), record)
    try:
        if not _show(workdir, uri, study, [record], attached.files):
            return f"MLflow has no run of study {study}: the figures are in its report folder alone"
    except StoreAway as error:
        return f"{error}; the figures are in the report folder: " + shlex.join(
            ["chip-ablate", "sync", study, "--workdir", str(workdir)]
        )
    return None


def attach_kept(workdir: Path, uri: str | None, study: str) -> None:
    """Show the figures of a study that were attached before, in the order in which they were.

    Raises:
        UserError: the store cannot be used.
    """
    records = read_records(_file(workdir, study))
    if records:
        _show(workdir, uri, study, records, [])


def _show(
    workdir: Path,
    uri: str | None,
    study: str,
    records: Sequence[Mapping[str, Any]],
    files: Sequence[tuple[Path, str]],
) -> bool:
    """Show records and files; return whether the study has a run."""
    address = tracking_uri(workdir, uri)
    own = address == own_uri(workdir)
    if own and is_new(address):
        return False
    store = MlflowStore(address, artifacts_of(workdir) if own else None)
    store.open(study)
    runs = {_slot(run): run for run in store.runs() if KIND in run.tags}
    if _STUDY not in runs:
        return False
    for record in records:
        for entry in record["figures"]:
            run = runs.get(tuple(entry["slot"]))
            mark = entry["fingerprint"]
            if run is None or mark not in (None, run.tags.get(FINGERPRINT)):
                continue  # it stands for another training now
            store.log_figures(run, entry["figures"], record["time"])
    for file, under in files:
        store.upload_file(runs[_STUDY], file, under)
    return True


def _wanted(attached: Attached) -> Iterator[tuple[_Slot, str | None, Mapping[str, float]]]:
    """Yield what run is to show which figures, and the fingerprint it must have."""
    yield _STUDY, None, attached.study
    yield ("base", "", ""), None, attached.base
    for arm, figures in attached.arms.values():
        yield ("arm", arm_key(arm), ""), arm.trials[0].fingerprint, figures
    for arm, trial, figures in attached.trials:
        yield ("trial", arm_key(arm), str(trial.seed)), trial.fingerprint, figures


def _file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / "attached.jsonl"


def _slot(run: Run) -> _Slot:
    """Return what a run stands for; one that was superseded stands for nothing that is wanted."""
    return run.tags[KIND], run.tags.get(ARM, ""), run.tags.get(SEED, "")
