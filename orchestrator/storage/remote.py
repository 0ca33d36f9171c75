"""Read and write files below a URI or in a shared folder, with fsspec.

There are no atomic renames and no locks: of something with several files, the one that marks it as
complete is written last (a checkpoint's manifest, a trial's result).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from chip_core.utils.errors import StorageError, UserError
from chip_core.utils.files import sync_folder

T = TypeVar("T")

#: Seconds between the tries of an operation, as a server may be unavailable for a moment.
PAUSES = (1.0, 4.0, 15.0)
#: The same for a job's files, which would otherwise be lost.
PATIENT = (*PAUSES, 60.0, 120.0)

#: Object stores, whose writes are atomic, and the extra or package for each.
_KINDS = {
    "s3": "chip-ablate[s3]",
    "s3a": "chip-ablate[s3]",
    "gs": "chip-ablate[gcs]",
    "gcs": "chip-ablate[gcs]",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}

_log = logging.getLogger(__name__)


class Remote:
    """A place for files that every machine reaches. Only its URI is passed between processes."""

    def __init__(self, uri: str, *, pauses: Iterable[float] = PAUSES) -> None:
        """Create it without any request yet.

        Args:
            uri: a folder: an absolute path, or an fsspec URI such as s3://BUCKET/FOLDER.
                Credentials come from the machine's own settings (the environment, an instance's
                role), never from the URI.
            pauses: seconds to wait after each failed try except the last.
        """
        self.uri = uri
        self._pauses = tuple(pauses)

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.uri,)

    def require(self) -> None:
        """Check that the folder exists and can be written.

        Raises:
            UserError: it is not.
        """
        try:
            self._fs  # noqa: B018
        except StorageError as error:
            raise UserError(f"--storage: {error}") from None
        key = f".written-by-{uuid.uuid4().hex}"
        try:
            self._whole(key, lambda path: self._fs.pipe_file(path, b""))
            self._fs.rm_file(self._at(key))
        except Exception as error:  # of any library
            raise UserError(
                f"--storage: {self.uri}: cannot be written ({_error_summary(error)}): "
                "make the folder or "
                "bucket, or give this machine what lets it in"
            ) from None

    def sizes(self, under: str = "") -> dict[str, int]:
        """Return the bytes of all files under a folder, by their keys.

        A key that leads out of the folder is left out.
        """
        folder = self._at(under) if under else self._root

        def look() -> dict[str, int]:
            found = _walked(folder) if self._local else self._listed(folder)
            above = len(self._root) + 1
            return {
                path[above:]: size
                for path, size in sorted(found)
                if not path.rpartition("/")[2].startswith(".")
                and not {"..", ".", ""} & set(path[above:].split("/"))
            }

        return self._tried(f"{under or 'it'} cannot be listed", look)

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the content of small files by key, if they exist."""
        paths = {self._at(key): key for key in keys}
        if not paths:
            return {}

        def look() -> dict[str, bytes]:
            found: dict[str, Any] = self._fs.cat(list(paths), on_error="return")
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
            return {paths[path]: value for path, value in found.items() if type(value) is bytes}

        return self._tried("a file cannot be read", look)

    def write(self, key: str, content: bytes) -> None:
        """Write a small file."""
        self._tried(
            f"{key} cannot be written",
            lambda: self._whole(key, lambda path: self._fs.pipe_file(path, content)),
        )

    def put(self, path: Path, key: str) -> None:
        """Copy a file from this machine to the storage.

        Raises:
            FileNotFoundError: it is gone from this machine.
            StorageError: it cannot be written.
        """

        def copy() -> None:
            if not path.exists():
                raise FileNotFoundError(path)
            self._whole(key, lambda to: self._fs.put_file(str(path), to))

        self._tried(f"{key} cannot be written", copy, missing=lambda: not path.exists())

    def get(self, key: str, path: Path) -> None:
        """Copy a file from the storage to this machine, atomically.

        Raises:
            FileNotFoundError: the storage does not have it.
            StorageError: it cannot be read.
        """

        def copy() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            self._fs.get_file(self._at(key), str(partial))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)

        self._tried(f"{key} cannot be read", copy, missing=lambda: True)

    def copy(self, key: str, to: str) -> None:
        """Copy a file within the storage."""
        self._tried(
            f"{to} cannot be written",
            lambda: self._whole(to, lambda path: self._fs.cp_file(self._at(key), path)),
        )

    def remove(self, keys: Iterable[str]) -> None:
        """Remove files. Missing ones are ignored."""
        for key in keys:

            def delete(path: str = self._at(key)) -> None:
                try:
                    self._fs.rm_file(path)
                except FileNotFoundError:
                    return

            self._tried(f"{key} cannot be removed", delete)

    def remove_all(self, under: str) -> None:
        """Remove all files under a folder, first those that mark something as complete."""
        whole = ("result.json", "trained.json", "manifest.json")
        self.remove(sorted(self.sizes(under), key=lambda key: not key.endswith(whole)))

    def _listed(self, folder: str) -> list[tuple[str, int]]:
        self._fs.invalidate_cache()
        try:
            found: Mapping[str, Mapping[str, Any]] = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return []
        return [
            (path, int(facts["size"] or 0))
            for path, facts in found.items()
            if facts["type"] == "file" and path.startswith(f"{folder}/")
        ]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            package = _KINDS.get(self.uri.partition("://")[0], "what it names")
            raise StorageError(f"{self.uri}: {error}: pip install '{package}'") from None
        except Exception as error:  # of any library
            raise StorageError(f"{self.uri}: {_error_summary(error)}") from None
        return fs, str(root).rstrip("/")

    @property
    def _local(self) -> bool:
        return "://" not in self.uri

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _whole(self, key: str, write: Callable[[str], Any]) -> None:
        """Write a file atomically, which object stores do themselves."""
        path = self._at(key)
        if not self._local:
            write(path)
            return
        place = Path(path)
        partial = place.with_name(f".{place.name}.{socket.gethostname()}.{os.getpid()}.partial")
        place.parent.mkdir(parents=True, exist_ok=True)
        write(str(partial))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(place)
        sync_folder(place.parent)

    def _tried(
        self, what: str, do: Callable[[], T], missing: Callable[[], bool] = lambda: False
    ) -> T:
        """Try an operation, and retry it after a while if it fails.

        Args:
            what: description of the failure.
            do: the operation.
            missing: whether a FileNotFoundError is about the file itself.

        Raises:
            FileNotFoundError: at once, if the file itself is missing.
            StorageError: it failed each time.
        """
        for pause in (*self._pauses, None):
            try:
                return do()
            except Exception as error:  # of any library
                if isinstance(error, FileNotFoundError) and missing():
                    raise
                if pause is None:
                    raise StorageError(f"{self.uri}: {what}: {_error_summary(error)}") from error
                _log.warning("%s: %s: %s: tried again", self.uri, what, _error_summary(error))
            time.sleep(pause)
        raise AssertionError


def checked_uri(text: str) -> str:
    """Check a user's storage and return it as a URI or an absolute path.

    Raises:
        UserError: it is neither, or holds a secret.
    """
    scheme, colon, rest = text.partition("://")
    if not colon and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(f"--storage: {text}: is no address: write two slashes behind the colon")
    if not colon:
        return str(Path(os.path.expanduser(text)).absolute())
    if scheme not in _KINDS:
        raise UserError(
            f"--storage: {scheme}://: is no kind of object store that is known here "
            f"({', '.join(_KINDS)}): give one of those, or a folder that all machines see"
        )
    if "@" in rest.partition("/")[0]:
        raise UserError(
            "--storage: a URI with a user or password would be written down: leave them to the "
            "machine's own settings"
        )
    if not rest.strip("/"):
        raise UserError(f"--storage: {text}: names no folder: write {scheme}://BUCKET/FOLDER")
    return text.rstrip("/")


def _walked(folder: str) -> list[tuple[str, int]]:
    """Return a folder's files and their sizes. A folder that cannot be read is an error."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # not there, or removed meanwhile
            raise error

    found = []
    for above, _, names in os.walk(folder, onerror=fail):
        for name in names:
            path = os.path.join(above, name)
            with suppress(FileNotFoundError):
                found.append((path, os.stat(path).st_size))
    return found


def _error_summary(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
