"""Find what a scorer needs besides its benchmark's folder, or report it as missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.evaluation.judge import EndpointJudge, ReplyCache, endpoint_problem
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.scorer import Judge, Resources, Similarity
from chip_core.evaluation.task import Benchmark
from chip_core.evaluation.text.language import nltk_problems, spacy_problems
from chip_core.evaluation.text.similarity import SPACY_VECTORS, SpacySimilarity, TableSimilarity
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import file_sha256

#: A table of word similarities in a benchmark's folder, in place of spaCy's vectors.
TABLE = "similarity.json"


def open_resources(
    settings: BenchmarkConfig,
    needs: frozenset[str],
    places: DataPaths,
    *,
    only: frozenset[str] | None = None,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> Resources:
    """Return what a benchmark's scorer needs.

    Args:
        settings: the benchmark's settings.
        needs: what the selected questions need.
        places: the locations of the data.
        only: the selected items, if they are not all.
        on_reply: called with (replies so far, calls in all) of a judge.

    Raises:
        TrialError: the judge cannot be used.
        UserError: a file of replies cannot be read.
    """
    if "nltk" in needs:
        offer_nltk_data(places)
    return Resources(
        similarity=_similarity(settings, places) if "similarity" in needs else None,
        coco=coco_folder(places) if "coco" in needs else None,
        judge=_judge(settings, places, on_reply) if "judge" in needs else None,
        only=only,
    )


def resource_problems(
    settings: BenchmarkConfig, needs: frozenset[str], places: DataPaths
) -> list[str]:
    """Return what a benchmark's scorer lacks, each with what to do; call and load nothing."""
    problems = []
    if "nltk" in needs:
        offer_nltk_data(places)
        problems += nltk_problems()
    if "similarity" in needs and similarity_table(settings, places) is None:
        wanted = (places.benchmark_folder(settings.name) or Path("DIR") / settings.name) / TABLE
        problems += [f"{lack} (or {wanted})" for lack in spacy_problems(SPACY_VECTORS)]
    if "coco" in needs and coco_folder(places) is None:
        problems.append(
            "COCO's annotations are not there: put instances_*2014.json and captions_*2014.json "
            f"into {_coco_wanted(places)}"
        )
    if "judge" in needs:
        replies = places.judge_replies
        if replies is not None:
            if not replies.is_file():
                problems.append(f"--judge-replies: no file {replies}")
        elif settings.judge is None:
            problems.append(
                "its answers are read by a judge and there is none: name one "
                f"(`{{name: {settings.name}, judge: {{model: …, base_url: …}}}}`), or replies that "
                "exist by --judge-replies"
            )
        elif (broken := endpoint_problem(settings.judge)) is not None:
            problems.append(broken)
    return problems


def resource_identity(
    settings: BenchmarkConfig, benchmark: Benchmark, places: DataPaths
) -> dict[str, Any]:
    """Return what a fingerprint holds of what a scorer needs.

    Raises:
        UserError: a file of replies does not exist.
    """
    found: dict[str, Any] = {}
    if "similarity" in benchmark.needs:
        table = similarity_table(settings, places)
        found["similarity"] = SPACY_VECTORS if table is None else file_sha256(table)
    if "coco" in benchmark.needs:
        folder = coco_folder(places)
        files = [] if folder is None else sorted(folder.glob("*_*2014.json"))
        found["coco"] = [[file.name, file_sha256(file)] for file in files]
    if "judge" not in benchmark.needs:
        found["judge"] = None  # a configured judge has no effect
    elif places.judge_replies is not None:
        if not places.judge_replies.is_file():
            raise UserError(f"--judge-replies: no file {places.judge_replies}")
        found["judge"] = {"replies": file_sha256(places.judge_replies)}  # in place of the model
    return found


def similarity_table(settings: BenchmarkConfig, places: DataPaths) -> Path | None:
    """Return the benchmark's own table of word similarities, or None."""
    folder = places.benchmark_folder(settings.name)
    file = None if folder is None else folder / TABLE
    return file if file is not None and file.is_file() else None


def coco_folder(places: DataPaths) -> Path | None:
    """Return the folder of COCO's annotation files, or None."""
    if places.benchmark_data is None:
        return None
    for folder in (places.benchmark_data / "coco" / "annotations", places.benchmark_data / "coco"):
        if folder.is_dir() and any(folder.glob("instances_*.json")):
            return folder
    return None


def _coco_wanted(places: DataPaths) -> str:
    within = places.benchmark_data
    return str((within or Path("DIR")) / "coco" / "annotations")


def _similarity(settings: BenchmarkConfig, places: DataPaths) -> Similarity:
    table = similarity_table(settings, places)
    return SpacySimilarity() if table is None else TableSimilarity.from_file(table)


def offer_nltk_data(places: DataPaths) -> None:
    """Add the benchmarks' folder, which every worker sees, to NLTK's search path."""
    if places.benchmark_data is None or not (places.benchmark_data / "nltk_data").is_dir():
        return
    import nltk

    folder = str(places.benchmark_data / "nltk_data")
    if folder not in nltk.data.path:
        nltk.data.path.append(folder)


def _judge(
    settings: BenchmarkConfig, places: DataPaths, on_reply: Callable[[int, int], None]
) -> Judge:
    if places.judge_replies is not None:
        return ReplayJudge.from_file(places.judge_replies)
    if settings.judge is None or places.judge_cache is None:
        raise TrialError(f"{settings.name}: its answers are read by a judge and there is none")
    return EndpointJudge(settings.judge, ReplyCache(places.judge_cache), on_reply)
