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

RANKER = "pairs/chair"  # key of the name list that ranks a trial's own answers


def identities(study: Study, places: DataPaths, seen: Identities) -> dict[str, Mapping[str, Any]]:
    """Return the part of the fingerprints that identifies a study's benchmarks.

    Args:
        study: the study.
        places: where the benchmarks' data are.
        seen: the identities of an earlier run, used where data or judge replies are not here.
    """
    return {
        f"{side}/{settings.name}": _identity(
            settings, places, seen.get(f"{side}/{settings.name}", {})
        )
        for side, settings in list_sides(study.benchmarks)
    }


def read_identities(workdir: Path, study: str) -> Identities:
    """Return the identities of a study's last run; empty without one or if the file is damaged."""
    file = _file(workdir, study)
    try:
        found = read_checksummed(file)
        if all(isinstance(identity, dict) for identity in found.values()):
            return found
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError):
        pass
    warn_once(
        f"{file} is not as it was written: what the benchmarks' data were is read from the data; "
        "`chip-ablate run` writes it again"
    )
    return {}


def is_damaged(workdir: Path, study: str) -> bool:
    """Return whether a study's file of identities is damaged."""
    file = _file(workdir, study)
    return file.exists() and not read_identities(workdir, study)


def save_identities(workdir: Path, study: str, found: Identities) -> None:
    """Save the identities of a run."""
    write_checksummed(
        _file(workdir, study), {key: dict(identity) for key, identity in found.items()}
    )


def ranker_names(places: DataPaths, seen: Identities) -> Mapping[str, Any]:
    """Return the identity of the name list by which CHAIR ranks a trial's own answers.

    If the list is not here, it is that of an earlier run, or empty.
    """
    folder = places.benchmark_folder("chair")
    file = None if folder is None else folder / "synonyms.txt"
    if file is None or not file.is_file():
        return seen.get(RANKER, {})
    return {"names": file_sha256(file)}


def _identity(
    settings: BenchmarkConfig, places: DataPaths, seen: Mapping[str, Any]
) -> Mapping[str, Any]:
    benchmark = benchmark_items.find_benchmark(settings.name)
    current = benchmark_items.code_identity(benchmark)
    if current.items() <= seen.items():
        replayed = "judge" in benchmark.needs and settings.judge is None
        if replayed and places.judge_replies is None:
            return seen
    else:
        seen = {}
    try:
        return benchmark_items.benchmark_identity(settings, places)
    except UserError:
        return seen or {**current, "files": None}  # reported before it runs


def _file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / "benchmarks.json"
