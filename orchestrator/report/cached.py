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
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

import chip_core
import orchestrator
from chip_core.evaluation.readiness import list_sides
from chip_core.results import CURVES
from chip_core.utils.errors import warn_once, warning_count
from chip_core.utils.files import file_sha256, read_checksummed, write_checksummed
from orchestrator.cost.budget import TRIMMED_FILE
from orchestrator.plan.plan import Plan, Trial
from orchestrator.plan.training_rows import OVERLAP_FILE
from orchestrator.report.results import Results, build_results
from orchestrator.report.summary import Summary, study_metrics
from orchestrator.report.writers.files import PAGE_FILE, artifact_folder, report_folder
from orchestrator.state.integrity import (
    attempt_folders,
    describe_kept_report,
    read_ledger,
    trials_with_lost_figures,
)
from orchestrator.state.ledger import Ledger

_INDEX_FILE = "report.json"  # in a study's folder, next to the report's folder
#: Libraries that compute and draw; their versions are part of the hash.
_HASHED_LIBRARIES = ("jinja2", "matplotlib", "numpy", "pillow", "scipy")
_CODE_SUFFIXES = {".py", ".j2", ".css"}


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A written report."""

    results: Results
    files: tuple[Path, ...]  # the page first
    content_hash: str | None  # hash of its inputs and files; None: not reusable
    summary: Summary | None = None  # None: the report was reused


def find_cached_report(
    plan: Plan, ledger: Ledger, storage: Path, folder: Path
) -> WrittenReport | None:
    """Return the existing report; None if it is incomplete or its inputs have changed.

    Args:
        plan: the study's plan.
        ledger: the ledger.
        storage: where the trials' folders are.
        folder: folder of the report, with the attachments of other commands.
    """
    try:
        raw = read_checksummed(_index_file(folder))
        files = {str(name): str(sha256) for name, sha256 in raw["files"].items()}
        results = TypeAdapter(Results).validate_python(raw["results"])
        is_complete = all(file_sha256(folder / name) == sha256 for name, sha256 in files.items())
        if not is_complete or raw["inputs"] != hash_inputs(plan, ledger, storage, folder, files):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return WrittenReport(
        results=results,
        files=tuple(folder / name for name in files),
        content_hash=_hash([raw["inputs"], files]),
    )


def rewrite_report(plan: Plan, ledger: Ledger, storage: Path, folder: Path) -> WrittenReport:
    """Build and write a report. For the arguments see `find_cached_report`."""
    from orchestrator.report.build import make_report
    from orchestrator.report.writers.files import write_report

    warnings_before = warning_count()
    report = make_report(plan, ledger, storage, folder)
    written = write_report(report, folder)
    results = build_results(report.summary)
    content_hash = None
    # A report with warnings is not reused, so that they are shown again.
    if warning_count() == warnings_before:
        files = {file.relative_to(folder).as_posix(): file_sha256(file) for file in written}
        with suppress(TypeError, ValueError):  # if JSON has no such type, the report is not reused
            inputs = hash_inputs(plan, ledger, storage, folder, files)
            index = {"inputs": inputs, "files": files, "results": asdict(results)}
            write_checksummed(_index_file(folder), index)
            content_hash = _hash([inputs, files])
    return WrittenReport(
        results=results, files=tuple(written), content_hash=content_hash, summary=report.summary
    )


def hash_inputs(
    plan: Plan, ledger: Ledger, storage: Path, folder: Path, report_files: Mapping[str, str]
) -> str:
    """Return a hash of everything that a report is made from.

    Args:
        plan: the study's plan.
        ledger: the ledger.
        storage: where the trials' folders are.
        folder: folder of the report.
        report_files: the report's own files by name; all others in the folder are attachments.
    """
    trials = {trial.fingerprint: trial for trial in plan.all_trials}
    return _hash(
        {
            "code": hash_code(),
            "study": plan.study,
            "arms": plan.arms,
            "base": plan.base,
            "trials": list(trials.values()),
            "identities": plan.identities,
            "places": plan.data_paths,
            "benchmarks": plan.benchmarks,
            "metrics": study_metrics(plan),
            "records": {
                fingerprint: record
                for fingerprint, record in ledger.items()
                if fingerprint in trials or record.study == plan.study.name
            },
            "attempts": [_hash_attempt_files(trial, ledger, storage) for trial in trials.values()],
            "notes": [_sha256(folder.parent / name) for name in (TRIMMED_FILE, OVERLAP_FILE)],
            "beside": {
                name: _sha256(file)
                for file in sorted(folder.rglob("[!.]*"))
                if file.is_file()
                and (name := file.relative_to(folder).as_posix()) not in report_files
            },
            "pictures": _picture_folder_times(plan),
        }
    )


@cache
def hash_code() -> str:
    """Return a hash of the package's code and of the versions of its libraries."""
    code = hashlib.sha256()
    for package in (chip_core, orchestrator):
        for root in map(Path, package.__path__):
            for file in sorted(path for path in root.rglob("*") if path.suffix in _CODE_SUFFIXES):
                code.update(f"{file.relative_to(root)}\0".encode())
                code.update(file.read_bytes())
    libraries = {name: version(name) for name in _HASHED_LIBRARIES}
    return _hash([code.hexdigest(), orchestrator.__version__, libraries, platform.python_version()])


def _hash_attempt_files(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, str | None]:
    """Return path -> sha256 of the files read of a trial: curves, scores, answers."""
    files = [folder / CURVES for folder in attempt_folders(storage, trial).values()]
    evaluations = ledger[trial.fingerprint].evaluations
    for scored in (evaluations[m] for m in trial.evaluations.values() if m in evaluations):
        folder, evaluation = storage / scored.folder, scored.evaluation
        files += [folder / evaluation.scores, folder / evaluation.responses]
    return {str(file.relative_to(storage)): _sha256(file) for file in files}


def _picture_folder_times(plan: Plan) -> list[Any]:
    """Return the modification times of the folders with the items' pictures.

    A benchmark's identity covers its files; pictures may be added later.
    """
    data = plan.data_paths.benchmark_data
    folders = (
        []
        if data is None
        else [data / settings.name for _, settings in list_sides(plan.study.benchmarks)]
    )
    times = []
    for folder in folders:
        with suppress(OSError):
            for inner in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
                times.append([str(inner), inner.stat().st_mtime_ns])
    return times


def _index_file(folder: Path) -> Path:
    return folder.with_name(_INDEX_FILE)


def _sha256(file: Path) -> str | None:
    try:
        return file_sha256(file)
    except OSError:
        return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(_to_plain(value)).encode()).hexdigest()


def _to_plain(value: Any) -> Any:
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
        return {field.name: _to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_to_plain(item) for item in value), key=json.dumps)
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
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
    lost_trials = trials_with_lost_figures(plan, ledger)
    if lost_trials and (folder / PAGE_FILE).exists():
        warn_once(describe_kept_report(folder / PAGE_FILE, plan, workdir, lost_trials))
        return []
    files = rewrite_report(plan, ledger, workdir, folder).files
    return [(file, artifact_folder(file, folder)) for file in files]
