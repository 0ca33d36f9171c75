"""Print the state of a folder of benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from chip_core.evaluation.benchmarks.status import BenchmarkStatus, FileStatus

STATE_STYLES = {"complete": "green", "scoring only": "yellow", "broken": "bold red"}


def status_lines(statuses: Sequence[BenchmarkStatus], folder: Path | None) -> Iterator[Text]:
    """List each benchmark's files, present or missing, and their sources."""
    if folder is None:
        yield Text(
            "No folder of benchmarks: name one by --benchmark-data or CHIP_ABLATE_BENCHMARK_DATA"
        )
    else:
        yield Text(f"{folder} (a folder for each benchmark, named as it)")
    for benchmark in statuses:
        yield Text()
        yield Text.assemble(
            (benchmark.name, "bold"), "  ", (benchmark.state, STATE_STYLES.get(benchmark.state, ""))
        )
        yield Text(f"  {_format_count(benchmark)}licence: {benchmark.source.licence}")
        if not benchmark.files:
            yield Text("  lmms-eval fetches its files: pip install 'chip-ablate[lmms]'")
            continue
        for file_status in benchmark.files:
            yield from _file_lines(file_status)


def status_json(statuses: Sequence[BenchmarkStatus], folder: Path | None) -> dict[str, Any]:
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
                        "name": file_status.file.names[0],
                        "there": file_status.is_complete,
                        "path": None if file_status.path is None else str(file_status.path),
                        "parts": file_status.parts,
                        "parts_published": file_status.file.parts,
                        "bytes": file_status.size,
                        "bytes_published": file_status.file.size,
                        "for": file_status.file.use,
                        "published": file_status.file.source,
                    }
                    for file_status in benchmark.files
                ],
            }
            for benchmark in statuses
        },
    }


def _format_count(benchmark: BenchmarkStatus) -> str:
    if benchmark.problem is not None:
        return f"{benchmark.problem}; "
    if benchmark.source.count is None:
        return ""
    if benchmark.count is None:
        return f"{benchmark.source.count:,} questions; "
    if benchmark.count != benchmark.source.count:
        return f"{benchmark.count:,} questions and not the {benchmark.source.count:,} published; "
    return f"all {benchmark.count:,} questions; "


def _file_lines(file_status: FileStatus) -> Iterator[Text]:
    state, style = ("there", "green") if file_status.is_complete else ("missing", "yellow")
    if file_status.path is not None and not file_status.is_complete:
        state = "in part"
    name = file_status.file.names[0]
    if file_status.path is not None and file_status.path.is_file() and file_status.file.parts == 1:
        name = file_status.path.name
    yield Text.assemble(
        "  ",
        (f"{state:8}", style),
        f" {name}, for {file_status.file.use}{_format_size(file_status)}",
    )
    if not file_status.is_complete:
        yield Text(f"           from {file_status.file.source}")


def _format_size(file_status: FileStatus) -> str:
    file = file_status.file
    parts = f", {file_status.parts:,} of {file.parts:,} files" if file.parts > 1 else ""
    if file_status.path is None:
        return parts + ("" if file.size is None else f", {file.size:,} bytes")
    changed = file.size is not None and file_status.size != file.size
    return f"{parts}, {file_status.size:,} bytes" + (
        f" (published: {file.size:,})" if changed else ""
    )
