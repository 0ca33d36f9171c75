"""Attach figures and files from other commands to a study's runs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chip_core.utils.files import append_record, read_records
from orchestrator.plan.plan import BASE_ARM, Arm, Trial
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.client import MlflowStore, Point
from orchestrator.tracking.runs import FINGERPRINT, KIND, STUDY, Slot, arm_slot, slot_of

_FILE = "attached.jsonl"  # in a study's folder


@dataclass(frozen=True, kw_only=True)
class StudyAttachment:
    """Figures and files to show with a study's runs."""

    study: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    arms: Mapping[str, tuple[Arm, Mapping[str, float]]] = field(default_factory=dict)
    trials: list[tuple[Arm, Trial, Mapping[str, float]]] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)  # (file, artifact folder)

    def figures(self) -> Iterator[tuple[Slot, str | None, Mapping[str, float]]]:
        """Yield (slot of the run, required fingerprint or None, figures)."""
        yield STUDY, None, self.study
        yield (BASE_ARM, "", ""), None, self.base
        for arm, figures in self.arms.values():
            yield arm_slot(arm), arm.trials[0].fingerprint, figures
        for arm, trial, figures in self.trials:
            yield ("trial", arm_slot(arm)[1], str(trial.seed)), trial.fingerprint, figures


def attach_files(
    workdir: Path, uri: str | None, study: str, attachment: StudyAttachment
) -> str | None:
    """Show figures and files with a study's existing runs, and save the figures.

    Runs are only added to; none is created, ended or superseded.

    Returns:
        a message for the user if the study has no run or the store is unavailable; else None.

    Raises:
        UserError: the store cannot be used.
    """
    figures = [
        {"slot": slot, "fingerprint": fingerprint, "figures": dict(figures)}
        for slot, fingerprint, figures in attachment.figures()
        if figures
    ]
    record = {"time": time.time(), "figures": figures}
    append_record(workdir / "studies" / study / _FILE, record)
    try:
        if not _log_attached(workdir, uri, study, [record], attachment.files):
            return f"MLflow has no run of study {study}: the figures are only in its report folder"
    except StoreUnavailable as error:
        return f"{error}; the figures are in the report folder: " + shlex.join(
            ["chip-ablate", "sync", study, "--workdir", str(workdir)]
        )
    return None


def reattach_files(workdir: Path, uri: str | None, study: str) -> None:
    """Show the saved figures of a study again, in their order.

    Raises:
        UserError: the store cannot be used.
    """
    if records := read_records(workdir / "studies" / study / _FILE):
        _log_attached(workdir, uri, study, records)


def _log_attached(
    workdir: Path,
    uri: str | None,
    study: str,
    records: Sequence[Mapping[str, Any]],
    files: Sequence[tuple[Path, str]] = (),
) -> bool:
    """Log records and upload files; return whether the study has a run."""
    store = MlflowStore(workdir, uri)
    if store.lacks_database:
        return False
    store.open(study)
    # Superseded runs are left out.
    runs = {slot_of(run): run for run in store.runs() if run.tags.get(KIND) == slot_of(run)[0]}
    if STUDY not in runs:
        return False
    for record in records:
        for entry in record["figures"]:
            run = runs.get(tuple(entry["slot"]))
            # With another fingerprint, the run now shows another training.
            if run is not None and entry["fingerprint"] in (None, run.tags.get(FINGERPRINT)):
                store.log_points(run, [Point(figures=entry["figures"], time=record["time"])])
    for file, artifact_path in files:
        store.upload_file(runs[STUDY], file, artifact_path)
    return True
