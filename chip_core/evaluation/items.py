"""Resolve a benchmark's settings: its questions, decoding, and the identity of its figures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from chip_core.config.benchmark import BenchmarkConfig, DataPaths
from chip_core.data.image_files import READER_VERSION
from chip_core.evaluation.resources import resource_identity
from chip_core.evaluation.task import BENCHMARKS, Benchmark, Decoding, ExternalBenchmark, Item, Side
from chip_core.utils import registry
from chip_core.utils.errors import UserError
from chip_core.utils.files import file_sha256
from chip_core.utils.registry import suggest

#: Raised whenever a code change affects which questions are used or how they are answered.
BEHAVIOUR = 2


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
                f"'{name}' is no benchmark: make it a subclass of "
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
        yield f"'{settings.name}' knows no protocol '{settings.protocol}': choices: {choices}"
    if settings.judge is not None and "judge" not in benchmark.needs:
        yield f"'{settings.name}' asks no judge: leave `judge` out"
    if not isinstance(benchmark, ExternalBenchmark):
        return
    if settings.limit is not None:
        yield "takes no limit: its own program would ask the first questions, not a subset"
    if settings.half is not None:
        yield "cannot be halved: its own program asks all questions"
    for key in ("max_new_tokens", "num_beams"):
        if getattr(settings, key) is not None:
            yield f"takes no {key}: its own program says how answers are made"


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
    selected = sorted(items, key=lambda item: _shuffle_key(settings.name, item.id))[
        : settings.limit
    ]
    selected_ids = {item.id for item in selected}
    return [item for item in items if item.id in selected_ids], total


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
        half = _assign_half(settings.half_seed, benchmark.group(item))
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
            f"{settings.name}: nothing is in its {empty_halves[0]} half: it has too few groups of "
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


def _assign_half(seed: int, group: str) -> str:
    bit = hashlib.sha256(f"half\x1f{seed}\x1f{group}".encode()).digest()[0] & 1
    return "report" if bit else "select"


def _shuffle_key(benchmark: str, item: str) -> bytes:
    return hashlib.sha256(f"limit\x1f{benchmark}\x1f{item}".encode()).digest()
