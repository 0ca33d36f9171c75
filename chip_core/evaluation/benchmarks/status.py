"""Find which files of the benchmarks a folder has, and which are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chip_core.evaluation.benchmarks.published import SOURCES, BenchmarkFile, BenchmarkSource
from chip_core.utils.errors import UserError
from chip_core.utils.registry import suggest

State = Literal["complete", "scoring only", "incomplete", "absent", "broken", "by lmms-eval"]
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """The parts of a published file that exist."""

    file: BenchmarkFile
    path: Path | None = None  # the first of its parts; None: none exists
    parts: int = 0
    size: int = 0  # bytes

    @property
    def is_complete(self) -> bool:
        """Whether all of its parts exist."""
        return self.parts >= self.file.parts or (self.path is not None and self.path.is_file())


@dataclass(frozen=True, kw_only=True)
class BenchmarkStatus:
    """The files of a benchmark that exist."""

    name: str
    source: BenchmarkSource
    files: tuple[FileStatus, ...]
    count: int | None = None  # questions; None: not counted
    problem: str | None = None  # why they could not be counted

    @property
    def state(self) -> State:
        """One word for what can be done with it."""
        if not self.files:
            return "by lmms-eval"
        if self.problem is not None or self.count not in (None, self.source.count):
            return "broken"
        complete = {status.file.use: True for status in self.files}
        for status in self.files:
            complete[status.file.use] &= status.is_complete
        if complete["scoring"]:
            return "complete" if complete.get("asking", True) else "scoring only"
        return "incomplete" if any(status.path for status in self.files) else "absent"


def find_benchmark_status(names: Sequence[str], folder: Path | None) -> list[BenchmarkStatus]:
    """Return the state of benchmarks in a folder; of all benchmarks if none is named.

    Args:
        names: benchmarks.
        folder: has a folder for each benchmark, with its name; None: there is none.

    Raises:
        UserError: the folder does not exist, or a name is unknown.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"--benchmark-data: no folder {folder}")
    for name in names:
        if name not in SOURCES:
            raise UserError(f"unknown benchmark '{name}': {suggest(name, SOURCES)}")
    return [
        _status(name, source, None if folder is None else folder / name)
        for name, source in SOURCES.items()
        if not names or name in names
    ]


def _status(name: str, source: BenchmarkSource, folder: Path | None) -> BenchmarkStatus:
    files = tuple(_find_parts(file, folder) for file in source.files)
    count, problem = None, None
    # Questions are counted in the benchmark's own files, not in COCO's beside it.
    scored = [status for status in files if status.file.use == "scoring"]
    if (
        folder is not None
        and source.count_questions is not None
        and all(status.path for status in scored)
    ):
        try:
            count = source.count_questions(folder)
        except UserError as error:
            problem = str(error)
    return BenchmarkStatus(name=name, source=source, files=files, count=count, problem=problem)


def _find_parts(file: BenchmarkFile, folder: Path | None) -> FileStatus:
    if folder is None:
        return FileStatus(file=file)
    for name in file.names:
        paths = (
            _find_pictures(folder / name)
            if name.endswith("/")
            else sorted(_find_matching_files(folder, name))
        )
        if paths:
            size = sum(path.stat().st_size for path in paths)
            path = folder / name if name.endswith("/") else paths[0]
            return FileStatus(file=file, path=path, parts=len(paths), size=size)
    return FileStatus(file=file)


def _find_matching_files(folder: Path, name: str) -> list[Path]:
    """Return the files that match a name or pattern, which may be beside the folder."""
    while name.startswith("../"):
        folder, name = folder.parent, name.removeprefix("../")
    return [path for path in folder.glob(name) if path.is_file()]


def _find_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES]
