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
from orchestrator.storage.remote import RemoteStorage

#: Seconds between two uploads.
UPLOAD_SECONDS = 2.0

_log = logging.getLogger(__name__)

FileStamp = tuple[int, int]


class Uploader:
    """Copies a job's files from folders of this machine to the storage while it runs."""

    def __init__(
        self,
        remote: RemoteStorage,
        folders: Sequence[Path],
        root: Path,
        *,
        incoming: Sequence[Path] = (),
        on_copy: Callable[[bool], None] = lambda last: None,
        interval: float = UPLOAD_SECONDS,
    ) -> None:
        """Create an uploader that is not started yet.

        Args:
            remote: the storage.
            folders: folders to copy, below `root`.
            root: a file's key in the storage is its path below it.
            incoming: files that the driver writes to the storage and that are copied here.
            on_copy: called after each copy to save anything else, with whether it is the last time.
            interval: seconds between two copies.
        """
        self._remote, self._folders, self._root, self._interval = remote, folders, root, interval
        self._incoming, self._on_copy = tuple(incoming), on_copy
        self._uploaded: dict[str, FileStamp] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run_repeatedly, args=(operation,), name="storage", daemon=True
            )
            for operation in (self.copy, self._fetch_incoming)
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
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self.copy(is_last=True)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Pause copying, and never copy files created meanwhile, which are from the storage."""
        with self._lock:
            previous_keys = set(self._files_to_copy() or ())
            yield
            for key, path in (self._files_to_copy() or {}).items():
                if key not in previous_keys:
                    self._uploaded[key] = _file_stamp(path)

    def copy(self, *, is_last: bool = False) -> None:
        """Copy files that are new or changed since the last call, and remove deleted ones.

        Args:
            is_last: whether this is the last call.

        Raises:
            StorageError: the storage cannot be written.
        """
        with self._lock:
            files = self._files_to_copy()
            if files is not None:
                self._upload_changes(files)
            self._on_copy(is_last)

    def _upload_changes(self, files: dict[str, Path]) -> None:
        for key, path in sorted(files.items(), key=lambda item: _copy_order(item[1])):
            try:
                stamp = _file_stamp(path)
                if self._uploaded.get(key) != stamp:
                    self._remote.put(path, key)
                    self._uploaded[key] = stamp
            except FileNotFoundError:
                continue  # removed meanwhile, such as an old checkpoint
        removed_keys = [key for key in self._uploaded if key not in files]
        self._remote.remove(removed_keys)
        for key in removed_keys:
            del self._uploaded[key]

    def _fetch_incoming(self) -> None:
        """Fetch the files that the driver writes."""
        missing_paths = {self._key(path): path for path in self._incoming if not path.exists()}
        for key, content in self._remote.read(missing_paths).items():
            missing_paths[key].write_bytes(content)

    def _run_repeatedly(self, operation: Callable[[], None]) -> None:
        while not self._stopped.wait(self._interval):
            try:
                operation()
            except (StorageError, OSError) as error:  # the last copy tries again
                _log.warning("%s", error)

    def _files_to_copy(self) -> dict[str, Path] | None:
        """Return the files to copy by key: complete files and files that only grow.

        None if a training is just ending: its model is then being completed and its checkpoints
        deleted, so a list may have neither.
        """
        excluded = set(self._incoming)
        files = {}
        for folder in self._folders:
            was_trained = (folder / TRAINED).exists()
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                parts = path.relative_to(folder).parts
                is_hidden = any(part.startswith(".") for part in parts)
                is_incomplete = parts[0] == MODEL and not was_trained
                if not (is_hidden or is_incomplete or path in excluded) and path.is_file():
                    files[self._key(path)] = path
            if (folder / TRAINED).exists() != was_trained:
                return None
        return files

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _file_stamp(path: Path) -> FileStamp:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _copy_order(path: Path) -> tuple[int, int, int, str]:
    """Sort key for the order in which files are copied.

    Of the checkpoints, the newest is first, its manifest right after it.
    """
    is_marker = path.name == MANIFEST or path.name.endswith(".note.json")
    if path.name == RESULT:
        return 4, 0, 0, path.name
    if path.name == TRAINED:
        return 3, 0, 0, path.name
    if CHECKPOINTS in path.parts:
        step = path.parts[path.parts.index(CHECKPOINTS) + 1].rpartition("-")[2]
        return 1, -int(step) if step.isdigit() else 0, int(is_marker), str(path)
    return (2 if is_marker or MODEL in path.parts else 0), 0, int(is_marker), str(path)
