"""Print the state of a folder of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from chip_core.evaluation.benchmarks.status import BenchmarkStatus, FileStatus

STYLES = {"complete": "green", "scoring only": "yellow", "broken": "bold red"}


def status_lines(found: Sequence[BenchmarkStatus], folder: Path | None) -> Iterator[Text]:
    """List each benchmark's files, present or missing, and their sources."""
    if folder is None:
        yield Text(
            "No folder of benchmarks: name one by --benchmark-data or CHIP_ABLATE_BENCHMARK_DATA"
        )
    else:
        yield Text(f"{folder} (a folder for each benchmark, named as it)")
    for benchmark in found:
        yield Text()
        yield Text.assemble(
            (benchmark.name, "bold"), "  ", (benchmark.state, STYLES.get(benchmark.state, ""))
        )
        yield Text(f"  {_counted(benchmark)}licence: {benchmark.source.licence}")
        if not benchmark.files:
            yield Text("  lmms-eval fetches its files: pip install 'chip-ablate[lmms]'")
            continue
        for held in benchmark.files:
            yield from _file(held)


def status_json(found: Sequence[BenchmarkStatus], folder: Path | None) -> dict[str, Any]:
    """Return the same as plain data."""
    return {
        "benchmark_data": None if folder is None else str(folder),
        "benchmarks": {
            benchmark.name: {
                "state": benchmark.state,
                "licence": benchmark.source.licence,
                "questions": benchmark.count,
                "questions_published": benchmark.source.count,
                "problem": benchmark.problem,
                "files": [
                    {
                        "name": held.file.names[0],
                        "there": held.is_complete,
                        "path": None if held.path is None else str(held.path),
                        "parts": held.parts,
                        "parts_published": held.file.parts,
                        "bytes": held.size,
                        "bytes_published": held.file.size,
                        "for": held.file.use,
                        "published": held.file.source,
                    }
                    for held in benchmark.files
                ],
            }
            for benchmark in found
        },
    }


def _counted(benchmark: BenchmarkStatus) -> str:
    if benchmark.problem is not None:
        return f"{benchmark.problem}; "
    if benchmark.source.count is None:
        return ""
    if benchmark.count is None:
        return f"{benchmark.source.count:,} questions; "
    if benchmark.count != benchmark.source.count:
        return f"{benchmark.count:,} questions and not the {benchmark.source.count:,} published; "
    return f"all {benchmark.count:,} questions; "


def _file(held: FileStatus) -> Iterator[Text]:
    word, style = ("there", "green") if held.is_complete else ("missing", "yellow")
    if held.path is not None and not held.is_complete:
        word = "in part"
    name = held.file.names[0]
    if held.path is not None and held.path.is_file() and held.file.parts == 1:
        name = held.path.name
    yield Text.assemble("  ", (f"{word:8}", style), f" {name}, for {held.file.use}{_size(held)}")
    if not held.is_complete:
        yield Text(f"           from {held.file.source}")


def _size(held: FileStatus) -> str:
    file = held.file
    parts = f", {held.parts:,} of {file.parts:,} files" if file.parts > 1 else ""
    if held.path is None:
        return parts + ("" if file.size is None else f", {file.size:,} bytes")
    changed = file.size is not None and held.size != file.size
    return f"{parts}, {held.size:,} bytes" + (f" (published: {file.size:,})" if changed else "")
