"""Record the content identities of a study's benchmarks when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation import items as benchmark_items
from chip_core.evaluation.readiness import list_sides
from chip_core.utils.errors import UserError, warn_once
from chip_core.utils.files import file_sha256, read_checksummed, write_checksummed
from orchestrator.study.model import Study

Identities = Mapping[str, Mapping[str, Any]]  # by key: "report/amber"

RANKER_KEY = "pairs/chair"  # key of the name list that ranks a trial's own answers


def benchmark_identities(
    study: Study, data_paths: DataPaths, known_identities: Identities
) -> dict[str, Mapping[str, Any]]:
    """Return the part of the fingerprints that identifies a study's benchmarks.

    Args:
        study: the study.
        data_paths: where the benchmarks' data are.
        known_identities: those of an earlier run, used where data or judge replies are not here.
    """
    return {
        f"{side}/{settings.name}": _benchmark_identity(
            settings, data_paths, known_identities.get(f"{side}/{settings.name}", {})
        )
        for side, settings in list_sides(study.benchmarks)
    }


def read_identities(workdir: Path, study: str) -> Identities:
    """Return the identities of a study's last run; empty without one or if the file is damaged."""
    file = _identities_file(workdir, study)
    try:
        saved_identities = read_checksummed(file)
        if all(isinstance(identity, dict) for identity in saved_identities.values()):
            return saved_identities
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        pass
    warn_once(
        f"{file} has changed since it was written: the identities of the benchmarks' data are "
        "computed from the data; `chip-ablate run` writes the file again"
    )
    return {}


def is_identities_file_damaged(workdir: Path, study: str) -> bool:
    """Return whether a study's file of identities is damaged."""
    file = _identities_file(workdir, study)
    return file.exists() and not read_identities(workdir, study)


def save_identities(workdir: Path, study: str, identities: Identities) -> None:
    """Save the identities of a run."""
    write_checksummed(
        _identities_file(workdir, study),
        {key: dict(identity) for key, identity in identities.items()},
    )


def ranker_identity(data_paths: DataPaths, known_identities: Identities) -> Mapping[str, Any]:
    """Return the identity of the name list by which CHAIR ranks a trial's own answers.

    If the list is not here, it is that of an earlier run, or empty.
    """
    folder = data_paths.benchmark_folder("chair")
    file = None if folder is None else folder / "synonyms.txt"
    if file is None or not file.is_file():
        return known_identities.get(RANKER_KEY, {})
    return {"names": file_sha256(file)}


def _benchmark_identity(
    settings: BenchmarkConfig, data_paths: DataPaths, known_identities: Mapping[str, Any]
) -> Mapping[str, Any]:
    benchmark = benchmark_items.find_benchmark(settings.name)
    code_identity = benchmark_items.code_identity(benchmark)
    if code_identity.items() <= known_identities.items():
        is_replayed = "judge" in benchmark.needs and settings.judge is None
        if is_replayed and data_paths.judge_replies is None:
            return known_identities
    else:
        known_identities = {}
    try:
        return benchmark_items.benchmark_identity(settings, data_paths)
    except UserError:
        return known_identities or {**code_identity, "files": None}  # reported before it runs


def _identities_file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / "benchmarks.json"
