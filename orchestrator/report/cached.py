"""Reuse a report as long as everything that it is made from is unchanged.

`report.json` next to its folder holds a hash of the inputs, one of each of the report's files, and
the results printed on the terminal. It is written last, so that it never names files that do not
exist. If a file is missing or changed, the report is made again.
"""

from __future__ import annotations

import enum
import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import chip_core
import orchestrator
from chip_core.evaluation.readiness import sides
from chip_core.results import CURVES
from chip_core.utils.errors import warn_once, warning_count
from chip_core.utils.files import read_checksummed, sha256_of, write_checksummed
from orchestrator.cost.trimmed_trials import LEFT_OUT
from orchestrator.plan.contamination import OVERLAP_FILE
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.results import Results, results_of
from orchestrator.report.summary import Summary, study_metrics
from orchestrator.report.writers.files import PAGE, artifact_folder, report_folder
from orchestrator.state.integrity import (
    attempt_folders,
    kept_report_notice,
    read_ledger,
    trials_with_lost_figures,
)
from orchestrator.state.ledger import Ledger
from orchestrator.state.search import all_trials

_FILE = "report.json"  # in a study's folder, next to the report's folder
#: Libraries that compute and draw; their versions are part of the hash.
_LIBRARIES = ("jinja2", "matplotlib", "numpy", "pillow", "scipy")
_CODE = {".py", ".j2", ".css"}


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A written report."""

    results: Results
    files: tuple[Path, ...]  # the page first
    mark: str | None  # hash of its inputs and files; None: not reusable
    summary: Summary | None = None  # None: the report was reused


def find_report(plan: Plan, ledger: Ledger, storage: Path, folder: Path) -> WrittenReport | None:
    """Return the existing report; None if it is incomplete or its inputs have changed.

    Args:
        plan: the study's plan.
        ledger: the ledger.
        storage: where the trials' folders are.
        folder: folder of the report, with the attachments of other commands.
    """
    try:
        raw = read_checksummed(_mark_file(folder))
        files = {str(name): str(sha256) for name, sha256 in raw["files"].items()}
        results = Results.read(raw["results"])
        whole = all(sha256_of(folder / name) == sha256 for name, sha256 in files.items())
        if not whole or raw["inputs"] != inputs_hash(plan, ledger, storage, folder, files):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return WrittenReport(
        results=results,
        files=tuple(folder / name for name in files),
        mark=_hash([raw["inputs"], files]),
    )


def rewrite_report(plan: Plan, ledger: Ledger, storage: Path, folder: Path) -> WrittenReport:
    """Build and write a report. For the arguments see `find_report`."""
    from orchestrator.report.build import make_report
    from orchestrator.report.writers.files import write_report

    before = warning_count()
    report = make_report(plan, ledger, storage, folder)
    written = write_report(report, folder)
    results = results_of(report.summary)
    mark = None
    # A report with warnings is not reused, so that they are shown again.
    if warning_count() == before:
        files = {file.relative_to(folder).as_posix(): sha256_of(file) for file in written}
        with suppress(TypeError, ValueError):  # if JSON has no such type, the report is not reused
            inputs = inputs_hash(plan, ledger, storage, folder, files)
            kept = {"inputs": inputs, "files": files, "results": results.kept()}
            write_checksummed(_mark_file(folder), kept)
            mark = _hash([inputs, files])
    return WrittenReport(results=results, files=tuple(written), mark=mark, summary=report.summary)


def inputs_hash(
    plan: Plan, ledger: Ledger, storage: Path, folder: Path, own: Mapping[str, str]
) -> str:
    """Return a hash of everything that a report is made from.

    Args:
        plan: the study's plan.
        ledger: the ledger.
        storage: where the trials' folders are.
        folder: folder of the report.
        own: the report's own files by name; all others in the folder are attachments.
    """
    trials = {trial.fingerprint: trial for trial in all_trials(plan)}
    return _hash(
        {
            "code": code_hash(),
            "study": plan.study,
            "arms": plan.arms,
            "base": plan.base,
            "trials": list(trials.values()),
            "identities": plan.identities,
            "places": plan.data_paths,
            "benchmarks": plan.benchmarks,
            "metrics": study_metrics(plan),
            "records": {
                mark: record
                for mark, record in ledger.items()
                if mark in trials or record.study == plan.study.name
            },
            "attempts": [_attempt_files(trial, ledger, storage) for trial in trials.values()],
            "notes": [_sha256(folder.parent / name) for name in (LEFT_OUT, OVERLAP_FILE)],
            "beside": {
                name: _sha256(file)
                for file in sorted(folder.rglob("[!.]*"))
                if file.is_file() and (name := file.relative_to(folder).as_posix()) not in own
            },
            "pictures": _pictures(plan),
        }
    )


@cache
def code_hash() -> str:
    """Return a hash of the package's code and of the versions of its libraries."""
    code = hashlib.sha256()
    for package in (chip_core, orchestrator):
        for root in map(Path, package.__path__):
            for file in sorted(path for path in root.rglob("*") if path.suffix in _CODE):
                code.update(f"{file.relative_to(root)}\0".encode())
                code.update(file.read_bytes())
    libraries = {name: version(name) for name in _LIBRARIES}
    return _hash([code.hexdigest(), orchestrator.__version__, libraries, platform.python_version()])


def _attempt_files(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, str | None]:
    """Return path -> sha256 of the files read of a trial: curves, scores, answers."""
    files = [folder / CURVES for folder in attempt_folders(storage, trial).values()]
    evaluations = ledger[trial.fingerprint].evaluations
    for scored in (evaluations[m] for m in trial.evaluations.values() if m in evaluations):
        folder, found = storage / scored.folder, scored.evaluation
        files += [folder / found.scores, folder / found.responses]
    return {str(file.relative_to(storage)): _sha256(file) for file in files}


def _pictures(plan: Plan) -> list[Any]:
    """Return the modification times of the folders with the items' pictures.

    A benchmark's identity covers its files; pictures may be added later.
    """
    data = plan.data_paths.benchmark_data
    folders = (
        []
        if data is None
        else [data / settings.name for _, settings in sides(plan.study.benchmarks)]
    )
    found = []
    for folder in folders:
        with suppress(OSError):
            for inner in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
                found.append([str(inner), inner.stat().st_mtime_ns])
    return found


def _mark_file(folder: Path) -> Path:
    return folder.with_name(_FILE)


def _sha256(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except OSError:
        return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_plain(value)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Convert a value to JSON types, the same in every process.

    Raises:
        TypeError: the value's type has no such form.
    """
    if (
        value is None
        or isinstance(value, (str, int, float, bool))
        and not isinstance(value, enum.Enum)
    ):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, BaseModel):
        return [type(value).__name__, value.model_dump_json()]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(below) for below in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_plain(below) for below in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not hashed")


def refresh_report(plan: Plan, workdir: Path) -> list[tuple[Path, str]]:
    """Write a study's report again, to include new attachments.

    Returns:
        its files, each with its artifact folder in the study's run; none if no trial has figures
        yet or the existing report is more complete.
    """
    ledger = read_ledger(plan, workdir)
    if not any(ledger[trial.fingerprint].evaluations for trial in plan.trials):
        return []
    folder = report_folder(workdir, plan.study.name)
    lost = trials_with_lost_figures(plan, ledger)
    if lost and (folder / PAGE).exists():
        warn_once(kept_report_notice(folder / PAGE, plan, workdir, lost))
        return []
    files = rewrite_report(plan, ledger, workdir, folder).files
    return [(file, artifact_folder(file, folder)) for file in files]
