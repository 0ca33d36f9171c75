"""A job's files on the machine that it runs on, kept the same in the storage.

The job writes to its own disk as it always does; a thread copies what is whole. What says that
something is whole goes last: a checkpoint's manifest after its files, `trained.json` after the
model, `result.json` after everything.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from chip_core.errors import StorageError
from chip_core.results import CHECKPOINTS, MODEL, RESULT, TRAINED
from chip_core.training.store.folder import MANIFEST
from orchestrator.storage.remote import Remote

#: Seconds between two looks at what is new.
EVERY = 2.0

_log = logging.getLogger(__name__)


class Mirror:
    """Copies what a job leaves in folders of this machine to the storage, while it runs."""

    def __init__(
        self,
        remote: Remote,
        folders: Sequence[Path],
        root: Path,
        *,
        asked: Sequence[Path] = (),
        every: float = EVERY,
    ) -> None:
        """Nothing is copied yet.

        Args:
            remote: the storage.
            folders: what is copied, below `root`.
            root: a file's key in the storage is its path below it.
            asked: files that the driver leaves in the storage: they are copied here.
            every: seconds between two looks.
        """
        self._remote, self._folders, self._root, self._every = remote, folders, root, every
        self._asked = {self._key(path): path for path in asked}
        self._there: dict[str, tuple[int, int]] = {}
        self._turn = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Copy the rest: when this returns, all of it is there.

        Raises:
            StorageError: it cannot be written.
        """
        self._end.set()
        self._thread.join()
        self.copy()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Copy nothing meanwhile, nor ever what is there at the end: it came from the storage."""
        with self._turn:
            yield
            self._there = {self._key(path): _mark(path) for path in self._files()}

    def copy(self) -> None:
        """Copy what is new or has changed since the last time; remove what is gone.

        Raises:
            StorageError: the storage cannot be written.
        """
        with self._turn:
            self._copy()

    def _copy(self) -> None:
        found = {self._key(path): path for path in self._files()}
        for key, path in sorted(found.items(), key=lambda item: _last(item[1])):
            try:
                mark = _mark(path)
                if self._there.get(key) != mark:
                    self._remote.put(path, key)
                    self._there[key] = mark
            except FileNotFoundError:
                continue  # removed meanwhile: an old checkpoint
        gone = [key for key in self._there if key not in found]
        self._remote.remove(gone)
        for key in gone:
            del self._there[key]

    def _run(self) -> None:
        while not self._end.wait(self._every):
            try:
                self.copy()
                for key, content in self._remote.read(
                    key for key, path in self._asked.items() if not path.exists()
                ).items():
                    self._asked[key].write_bytes(content)
            except (StorageError, OSError) as error:  # the end tries again, and says so
                _log.warning("%s", error)

    def _files(self) -> Iterator[Path]:
        """Yield what is to be copied: whole files and files that only grow."""
        for folder in self._folders:
            whole_model = (folder / TRAINED).exists()  # looked at before its files are
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                parts = path.relative_to(folder).parts
                hidden = any(part.startswith(".") for part in parts)
                if hidden or path in self._asked.values() or not path.is_file():
                    continue
                if parts[0] == MODEL and not whole_model:
                    continue
                yield path

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _mark(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _last(path: Path) -> tuple[int, str]:
    """Return a file's place in the order in which files are copied."""
    if path.name == RESULT:
        return 4, path.name
    if path.name == TRAINED:
        return 3, path.name
    if path.name == MANIFEST or path.name.endswith(".note.json"):
        return 2, path.name
    return (1 if CHECKPOINTS in path.parts or MODEL in path.parts else 0), str(path)
