"""Find what a scorer needs besides its benchmark's folder, or report it as missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation.judge import EndpointJudge, ReplyCache, find_endpoint_problem
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.scorer import Judge, Resources, Similarity
from chip_core.evaluation.task import Benchmark
from chip_core.evaluation.text.language import nltk_problems, spacy_problems
from chip_core.evaluation.text.similarity import SPACY_VECTORS, SpacySimilarity, TableSimilarity
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import file_sha256

#: A table of word similarities in a benchmark's folder, in place of spaCy's vectors.
SIMILARITY_TABLE = "similarity.json"


def open_resources(
    settings: BenchmarkConfig,
    needs: frozenset[str],
    data_paths: DataPaths,
    *,
    only: frozenset[str] | None = None,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> Resources:
    """Return what a benchmark's scorer needs.

    Args:
        settings: the benchmark's settings.
        needs: what the selected questions need.
        data_paths: the locations of the data.
        only: the selected items, if they are not all.
        on_reply: called with (replies so far, calls in all) of a judge.

    Raises:
        TrialError: the judge cannot be used.
        UserError: a file of replies cannot be read.
    """
    if "nltk" in needs:
        add_nltk_data_path(data_paths)
    return Resources(
        similarity=_open_similarity(settings, data_paths) if "similarity" in needs else None,
        coco=find_coco_folder(data_paths) if "coco" in needs else None,
        judge=_open_judge(settings, data_paths, on_reply) if "judge" in needs else None,
        only=only,
    )


def find_resource_problems(
    settings: BenchmarkConfig, needs: frozenset[str], data_paths: DataPaths
) -> list[str]:
    """Return what a benchmark's scorer lacks, each with what to do; call and load nothing."""
    problems = []
    if "nltk" in needs:
        add_nltk_data_path(data_paths)
        problems += nltk_problems()
    if "similarity" in needs and find_similarity_table(settings, data_paths) is None:
        expected = (
            data_paths.benchmark_folder(settings.name) or Path("DIR") / settings.name
        ) / SIMILARITY_TABLE
        problems += [f"{problem} (or {expected})" for problem in spacy_problems(SPACY_VECTORS)]
    if "coco" in needs and find_coco_folder(data_paths) is None:
        problems.append(
            "COCO's annotations are not there: put instances_*2014.json and captions_*2014.json "
            f"into {_expected_coco_folder(data_paths)}"
        )
    if "judge" in needs:
        replies = data_paths.judge_replies
        if replies is not None:
            if not replies.is_file():
                problems.append(f"--judge-replies: no file {replies}")
        elif settings.judge is None:
            problems.append(
                "its answers are read by a judge and there is none: name one "
                f"(`{{name: {settings.name}, judge: {{model: …, base_url: …}}}}`), or replies that "
                "exist by --judge-replies"
            )
        elif (judge_problem := find_endpoint_problem(settings.judge)) is not None:
            problems.append(judge_problem)
    return problems


def resource_identity(
    settings: BenchmarkConfig, benchmark: Benchmark, data_paths: DataPaths
) -> dict[str, Any]:
    """Return what a fingerprint holds of what a scorer needs.

    Raises:
        UserError: a file of replies does not exist.
    """
    fields: dict[str, Any] = {}
    if "similarity" in benchmark.needs:
        table = find_similarity_table(settings, data_paths)
        fields["similarity"] = SPACY_VECTORS if table is None else file_sha256(table)
    if "coco" in benchmark.needs:
        folder = find_coco_folder(data_paths)
        files = [] if folder is None else sorted(folder.glob("*_*2014.json"))
        fields["coco"] = [[file.name, file_sha256(file)] for file in files]
    if "judge" not in benchmark.needs:
        fields["judge"] = None  # a configured judge has no effect
    elif data_paths.judge_replies is not None:
        if not data_paths.judge_replies.is_file():
            raise UserError(f"--judge-replies: no file {data_paths.judge_replies}")
        # in place of the model
        fields["judge"] = {"replies": file_sha256(data_paths.judge_replies)}
    return fields


def find_similarity_table(settings: BenchmarkConfig, data_paths: DataPaths) -> Path | None:
    """Return the benchmark's own table of word similarities, or None."""
    folder = data_paths.benchmark_folder(settings.name)
    file = None if folder is None else folder / SIMILARITY_TABLE
    return file if file is not None and file.is_file() else None


def find_coco_folder(data_paths: DataPaths) -> Path | None:
    """Return the folder of COCO's annotation files, or None."""
    if data_paths.benchmark_data is None:
        return None
    for folder in (
        data_paths.benchmark_data / "coco" / "annotations",
        data_paths.benchmark_data / "coco",
    ):
        if folder.is_dir() and any(folder.glob("instances_*.json")):
            return folder
    return None


def _expected_coco_folder(data_paths: DataPaths) -> str:
    folder = data_paths.benchmark_data
    return str((folder or Path("DIR")) / "coco" / "annotations")


def _open_similarity(settings: BenchmarkConfig, data_paths: DataPaths) -> Similarity:
    table = find_similarity_table(settings, data_paths)
    return SpacySimilarity() if table is None else TableSimilarity.from_file(table)


def add_nltk_data_path(data_paths: DataPaths) -> None:
    """Add the benchmarks' folder, which every worker sees, to NLTK's search path."""
    if data_paths.benchmark_data is None or not (data_paths.benchmark_data / "nltk_data").is_dir():
        return
    import nltk

    folder = str(data_paths.benchmark_data / "nltk_data")
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)


def _open_judge(
    settings: BenchmarkConfig, data_paths: DataPaths, on_reply: Callable[[int, int], None]
) -> Judge:
    if data_paths.judge_replies is not None:
        return ReplayJudge.from_file(data_paths.judge_replies)
    if settings.judge is None or data_paths.judge_cache is None:
        raise TrialError(f"{settings.name}: its answers are read by a judge and there is none")
    return EndpointJudge(settings.judge, ReplyCache(data_paths.judge_cache), on_reply)
