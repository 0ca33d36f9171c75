"""Identify a study's benchmarks by their content, for its fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation import items as benchmark_items
from chip_core.evaluation.readiness import list_sides
from chip_core.utils.errors import UserError
from chip_core.utils.files import file_sha256
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
