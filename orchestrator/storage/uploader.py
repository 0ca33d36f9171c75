"""Upload a job's files to the storage while it runs.

The job writes to its own disk; a thread copies complete files. A file that marks something as
complete is copied last: a checkpoint's manifest after its files, `trained.json` after the model,
`result.json` after everything. Messages between job and driver have a separate thread, so that
large files do not delay them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from chip_core.reference_cache.folder import MANIFEST
from chip_core.results import CHECKPOINTS, MODEL, RESULT, TRAINED
from chip_core.utils.errors import StorageError
from orchestrator.storage.remote import Remote

#: Seconds between two uploads.
EVERY = 2.0

_log = logging.getLogger(__name__)

FileStamp = tuple[int, int]


class Uploader:
    """Copies a job's files from folders of this machine to the storage while it runs."""

    def __init__(
        self,
        remote: Remote,
        folders: Sequence[Path],
        root: Path,
        *,
        asked: Sequence[Path] = (),
        also: Callable[[bool], None] = lambda last: None,
        every: float = EVERY,
    ) -> None:
        """Create an uploader that is not started yet.

        Args:
            remote: the storage.
            folders: folders to copy, below `root`.
            root: a file's key in the storage is its path below it.
            asked: files that the driver writes to the storage and that are copied here.
            also: saves anything else after each copy; called with whether it is the last time.
            every: seconds between two copies.
        """
        self._remote, self._folders, self._root, self._every = remote, folders, root, every
        self._asked, self._also = tuple(asked), also
        self._there: dict[str, FileStamp] = {}
        self._turn = threading.Lock()
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._again, args=(do,), name="storage", daemon=True)
            for do in (self.copy, self._fetch_asked)
        ]

    def __enter__(self) -> Uploader:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Copy the rest. When this returns, the storage has all files.

        Raises:
            StorageError: it cannot be written.
        """
        self._end.set()
        for thread in self._threads:
            thread.join()
        self.copy(last=True)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Pause copying, and never copy files created meanwhile, which are from the storage."""
        with self._turn:
            before = set(self._files() or ())
            yield
            for key, path in (self._files() or {}).items():
                if key not in before:
                    self._there[key] = _mark(path)

    def copy(self, *, last: bool = False) -> None:
        """Copy new and changed files since the last call, and remove deleted ones.

        Args:
            last: whether this is the last call.

        Raises:
            StorageError: the storage cannot be written.
        """
        with self._turn:
            found = self._files()
            if found is not None:
                self._copy(found)
            self._also(last)

    def _copy(self, found: dict[str, Path]) -> None:
        for key, path in sorted(found.items(), key=lambda item: _place(item[1])):
            try:
                mark = _mark(path)
                if self._there.get(key) != mark:
                    self._remote.put(path, key)
                    self._there[key] = mark
            except FileNotFoundError:
                continue  # removed meanwhile, such as an old checkpoint
        gone = [key for key in self._there if key not in found]
        self._remote.remove(gone)
        for key in gone:
            del self._there[key]

    def _fetch_asked(self) -> None:
        """Fetch the files that the driver writes."""
        wanted = {self._key(path): path for path in self._asked if not path.exists()}
        for key, content in self._remote.read(wanted).items():
            wanted[key].write_bytes(content)

    def _again(self, do: Callable[[], None]) -> None:
        while not self._end.wait(self._every):
            try:
                do()
            except (StorageError, OSError) as error:  # the last copy tries again
                _log.warning("%s", error)

    def _files(self) -> dict[str, Path] | None:
        """Return the files to copy by key: complete files and files that only grow.

        None if a training is just ending: at that moment its model is completed and its
        checkpoints are deleted, so that a list may lack both.
        """
        apart = set(self._asked)
        found = {}
        for folder in self._folders:
            trained = (folder / TRAINED).exists()
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                parts = path.relative_to(folder).parts
                hidden = any(part.startswith(".") for part in parts)
                half = parts[0] == MODEL and not trained
                if not (hidden or half or path in apart) and path.is_file():
                    found[self._key(path)] = path
            if (folder / TRAINED).exists() != trained:
                return None
        return found

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _mark(path: Path) -> FileStamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _place(path: Path) -> tuple[int, int, int, str]:
    """Sort key for the order in which files are copied.

    Of the checkpoints, the newest is first, its manifest right after it.
    """
    says_whole = path.name == MANIFEST or path.name.endswith(".note.json")
    if path.name == RESULT:
        return 4, 0, 0, path.name
    if path.name == TRAINED:
        return 3, 0, 0, path.name
    if CHECKPOINTS in path.parts:
        step = path.parts[path.parts.index(CHECKPOINTS) + 1].rpartition("-")[2]
        return 1, -int(step) if step.isdigit() else 0, int(says_whole), str(path)
    return (2 if says_whole or MODEL in path.parts else 0), 0, int(says_whole), str(path)
