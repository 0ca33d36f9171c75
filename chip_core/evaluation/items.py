"""Resolve a benchmark's settings: its questions, decoding, what its scorer needs, its identity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.data.image_files import READER_VERSION
from chip_core.evaluation.judge import EndpointJudge, ReplyCache, find_endpoint_problem
from chip_core.evaluation.judge.cache import ReplayJudge
from chip_core.evaluation.scorer import Judge, Resources, Similarity
from chip_core.evaluation.task import BENCHMARKS, Benchmark, Decoding, ExternalBenchmark, Item, Side
from chip_core.evaluation.text.language import nltk_problems, spacy_problems
from chip_core.evaluation.text.similarity import SPACY_VECTORS, SpacySimilarity, TableSimilarity
from chip_core.utils import registry
from chip_core.utils.errors import TrialError, UserError
from chip_core.utils.files import file_sha256
from chip_core.utils.registry import suggest

#: Raised whenever a code change affects which questions are used or how they are answered.
BEHAVIOUR = 2
#: A table of word similarities in a benchmark's folder, in place of spaCy's vectors.
SIMILARITY_TABLE = "similarity.json"


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name, or a user's own by module:attr.

    Raises:
        ValueError: there is none; one line that names similar ones.
    """
    if registry.is_plugin(name):
        loaded = registry.load_plugin(name)
        benchmark: Benchmark = loaded() if isinstance(loaded, type) else loaded
        if not isinstance(benchmark, Benchmark):
            raise ValueError(
                f"'{name}' is not a benchmark: make it a subclass of "
                "chip_core.evaluation.task.Benchmark"
            )
        return benchmark
    if name not in BENCHMARKS:
        hint = suggest(name, [*BENCHMARKS, "module:attr"])
        raise ValueError(f"unknown benchmark '{name}': {hint}")
    return BENCHMARKS[name]


def find_settings_problems(settings: BenchmarkConfig, benchmark: Benchmark) -> Iterator[str]:
    """Yield the settings that a benchmark does not know or cannot use."""
    if settings.protocol not in benchmark.protocols:
        choices = ", ".join(sorted(benchmark.protocols))
        yield f"'{settings.name}' has no protocol '{settings.protocol}': choices: {choices}"
    if settings.judge is not None and "judge" not in benchmark.needs:
        yield f"'{settings.name}' does not use a judge: leave out `judge`"
    if not isinstance(benchmark, ExternalBenchmark):
        return
    if settings.limit is not None:
        yield "cannot have a limit: its own program would ask the first questions, not a subset"
    if settings.half is not None:
        yield "cannot be halved: its own program asks all questions"
    for key in ("max_new_tokens", "num_beams"):
        if getattr(settings, key) is not None:
            yield f"cannot have {key}: its own program decides how answers are generated"


def resolve_decoding(settings: BenchmarkConfig, benchmark: Benchmark) -> Decoding:
    """Return how answers are generated."""
    defaults = benchmark.decoding(settings.protocol)
    return Decoding(
        max_new_tokens=settings.max_new_tokens or defaults.max_new_tokens,
        num_beams=settings.num_beams or defaults.num_beams,
    )


def select_items(
    side: Side, settings: BenchmarkConfig, benchmark: Benchmark, data_paths: DataPaths
) -> tuple[Sequence[Item], int]:
    """Return the selected questions, in the benchmark's order, and the total number.

    Under `limit` they are the first N of a shuffle that depends on benchmark and ids alone: a
    larger limit adds questions and drops none. Under `half` they are those of that half.

    Raises:
        UserError: a file of the benchmark is missing or broken, or it cannot be halved.
    """
    items = benchmark.items(
        side, data=data_paths.benchmark_folder(settings.name), protocol=settings.protocol
    )
    total = len(items)
    if settings.half is not None:
        items = select_half(items, settings, benchmark)
    if settings.limit is None or settings.limit >= len(items):
        return items, total
    selected = draw_items("limit", settings.name, items, settings.limit)
    selected_ids = {item.id for item in selected}
    return [item for item in items if item.id in selected_ids], total


def draw_items(purpose: str, benchmark: str, items: Sequence[Item], count: int) -> list[Item]:
    """Return the first items of a shuffle that depends on purpose, benchmark and ids alone."""
    return sorted(items, key=lambda item: _hash_key(purpose, benchmark, item.id))[:count]


def select_half(
    items: Sequence[Item], settings: BenchmarkConfig, benchmark: Benchmark
) -> Sequence[Item]:
    """Return the items of the requested half, in order.

    The half of a group depends on its name and the seed alone, not on order, other items or the
    benchmark, so a picture is on the same side of every benchmark that shows it.

    Raises:
        UserError: a picture is in both halves, or one half is empty.
    """
    halves: dict[str, list[Item]] = {"select": [], "report": []}
    side_of: dict[str, str] = {}  # by picture
    for item in items:
        hashed = _hash_key("half", settings.half_seed, benchmark.group(item))
        half = "report" if hashed[0] & 1 else "select"
        halves[half].append(item)
        for picture in item.pictures:
            if side_of.setdefault(picture.key, half) != half:
                raise UserError(
                    f"{settings.name}: picture {picture.key} is in both halves: let the "
                    "benchmark's `group` return the same for all items that show it"
                )
    empty_halves = [half for half, half_items in halves.items() if not half_items]
    if empty_halves:
        raise UserError(
            f"{settings.name}: its {empty_halves[0]} half is empty: it has too few groups of "
            "questions to be halved; try another `half_seed`"
        )
    assert settings.half is not None
    return halves[settings.half]


def benchmark_identity(settings: BenchmarkConfig, data_paths: DataPaths) -> dict[str, Any]:
    """Return what a fingerprint holds of a benchmark besides its settings.

    Its questions and truths count by content; pictures are assumed to be the published ones, and
    count by how they are read.

    Raises:
        UserError: a file of the benchmark is missing.
    """
    benchmark = find_benchmark(settings.name)
    fields: dict[str, Any] = {
        **code_identity(benchmark),
        "decoding": asdict(resolve_decoding(settings, benchmark)),
        "files": _hash_files(settings, benchmark, data_paths),
    }
    tools = benchmark.tools()
    if tools:
        fields["tools"] = dict(tools)
    if registry.is_plugin(settings.name):
        fields["source"] = registry.source_hash(settings.name)
    return {**fields, **resource_identity(settings, benchmark, data_paths)}


def code_identity(benchmark: Benchmark) -> dict[str, Any]:
    """Return what a fingerprint holds of the code that asks questions and scores answers."""
    return {**answering_identity(benchmark), "scorer": benchmark.version}


def answering_identity(benchmark: Benchmark) -> dict[str, Any]:
    """Return what a fingerprint holds of the code that asks a benchmark's questions.

    Pictures are files if a benchmark has a folder of its own; other benchmarks draw them.
    """
    reader = {"pictures": READER_VERSION} if "data" in benchmark.needs else {}
    return {"answers": BEHAVIOUR, **reader}


def _hash_files(
    settings: BenchmarkConfig, benchmark: Benchmark, data_paths: DataPaths
) -> list[list[str]]:
    try:
        files = benchmark.files(data_paths.benchmark_folder(settings.name))
        return sorted([file.name, file_sha256(file)] for file in files)
    except OSError as error:
        raise UserError(
            f"{settings.name}: {error.filename} cannot be read ({error.strerror})"
        ) from None


def _hash_key(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


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
        expected = (data_paths.benchmark_data or Path("DIR")) / "coco" / "annotations"
        problems.append(
            "COCO's annotations are missing: put instances_*2014.json and captions_*2014.json "
            f"into {expected}"
        )
    if "judge" in needs:
        replies = data_paths.judge_replies
        if replies is not None:
            if not replies.is_file():
                problems.append(f"--judge-replies: no file {replies}")
        elif settings.judge is None:
            problems.append(
                f"its answers need a judge and there is none: name one (`{{name: {settings.name}, "
                "judge: {model: …, base_url: …}}`), or existing replies with --judge-replies"
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
    coco = data_paths.benchmark_data / "coco"
    folders = (coco / "annotations", coco)
    return next((folder for folder in folders if any(folder.glob("instances_*.json"))), None)


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
        raise TrialError(f"{settings.name}: its answers need a judge and there is none")
    return EndpointJudge(settings.judge, ReplyCache(data_paths.judge_cache), on_reply)
