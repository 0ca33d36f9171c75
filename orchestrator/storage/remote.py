"""Read and write files below a URI or in a shared folder, with fsspec.

There are no atomic renames and no locks: if something has several files, the one that marks it as
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

#: Seconds between the tries of an operation, because a server may be briefly unavailable.
RETRY_PAUSES = (1.0, 4.0, 15.0)
#: The same for a job's files, which would otherwise be lost.
PATIENT_RETRY_PAUSES = (*RETRY_PAUSES, 60.0, 120.0)

#: Object stores (their writes are atomic), and the extra or package for each.
_OBJECT_STORES = {
    "s3": "chip-ablate[s3]",
    "s3a": "chip-ablate[s3]",
    "gs": "chip-ablate[gcs]",
    "gcs": "chip-ablate[gcs]",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}

_log = logging.getLogger(__name__)


class RemoteStorage:
    """A place for files that every machine reaches. Only its URI is passed between processes."""

    def __init__(self, uri: str, *, pauses: Iterable[float] = RETRY_PAUSES) -> None:
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
        return RemoteStorage, (self.uri,)

    def require_writable(self) -> None:
        """Check that the folder exists and can be written.

        Raises:
            UserError: it is not.
        """
        try:
            self._filesystem  # noqa: B018
        except StorageError as error:
            raise UserError(f"--storage: {error}") from None
        key = f".written-by-{uuid.uuid4().hex}"
        try:
            self._write_atomically(key, lambda path: self._filesystem.pipe_file(path, b""))
            self._filesystem.rm_file(self._absolute_path(key))
        except Exception as error:  # of any library
            raise UserError(
                f"--storage: {self.uri}: cannot be written ({_error_summary(error)}): create the "
                "folder or bucket, or give this machine credentials for it"
            ) from None

    def sizes(self, folder_key: str = "") -> dict[str, int]:
        """Return the bytes of all files under a folder, by their keys.

        A key that leads out of the folder is left out.
        """
        folder = self._absolute_path(folder_key) if folder_key else self._root

        def list_sizes() -> dict[str, int]:
            files = _walk_files(folder) if self._is_local else self._list_objects(folder)
            prefix_length = len(self._root) + 1
            return {
                path[prefix_length:]: size
                for path, size in sorted(files)
                if not path.rpartition("/")[2].startswith(".")
                and not {"..", ".", ""} & set(path[prefix_length:].split("/"))
            }

        return self._retry(f"{folder_key or 'it'} cannot be listed", list_sizes)

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the content of small files by key, if they exist."""
        paths = {self._absolute_path(key): key for key in keys}
        if not paths:
            return {}

        def read_contents() -> dict[str, bytes]:
            contents: dict[str, Any] = self._filesystem.cat(list(paths), on_error="return")
            for value in contents.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
            return {paths[path]: value for path, value in contents.items() if type(value) is bytes}

        return self._retry("a file cannot be read", read_contents)

    def write(self, key: str, content: bytes) -> None:
        """Write a small file."""
        self._retry(
            f"{key} cannot be written",
            lambda: self._write_atomically(
                key, lambda path: self._filesystem.pipe_file(path, content)
            ),
        )

    def put(self, path: Path, key: str) -> None:
        """Copy a file from this machine to the storage.

        Raises:
            FileNotFoundError: it is gone from this machine.
            StorageError: it cannot be written.
        """

        def upload() -> None:
            if not path.exists():
                raise FileNotFoundError(path)
            self._write_atomically(key, lambda to: self._filesystem.put_file(str(path), to))

        self._retry(f"{key} cannot be written", upload, is_missing=lambda: not path.exists())

    def get(self, key: str, path: Path) -> None:
        """Copy a file from the storage to this machine, atomically.

        Raises:
            FileNotFoundError: the storage does not have it.
            StorageError: it cannot be read.
        """

        def download() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            self._filesystem.get_file(self._absolute_path(key), str(partial))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)

        self._retry(f"{key} cannot be read", download, is_missing=lambda: True)

    def copy(self, key: str, target_key: str) -> None:
        """Copy a file within the storage."""
        self._retry(
            f"{target_key} cannot be written",
            lambda: self._write_atomically(
                target_key, lambda path: self._filesystem.cp_file(self._absolute_path(key), path)
            ),
        )

    def remove(self, keys: Iterable[str]) -> None:
        """Remove files. Missing ones are ignored."""
        for key in keys:

            def delete(path: str = self._absolute_path(key)) -> None:
                try:
                    self._filesystem.rm_file(path)
                except FileNotFoundError:
                    return

            self._retry(f"{key} cannot be removed", delete)

    def remove_all(self, folder_key: str) -> None:
        """Remove all files under a folder, first those that mark something as complete."""
        completion_markers = ("result.json", "trained.json", "manifest.json")
        self.remove(
            sorted(self.sizes(folder_key), key=lambda key: not key.endswith(completion_markers))
        )

    def _list_objects(self, folder: str) -> list[tuple[str, int]]:
        self._filesystem.invalidate_cache()
        try:
            objects: Mapping[str, Mapping[str, Any]] = self._filesystem.find(folder, detail=True)
        except FileNotFoundError:
            return []
        return [
            (path, int(info["size"] or 0))
            for path, info in objects.items()
            if info["type"] == "file" and path.startswith(f"{folder}/")
        ]

    @cached_property
    def _filesystem_and_root(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            package = _OBJECT_STORES.get(self.uri.partition("://")[0], "what it names")
            raise StorageError(f"{self.uri}: {error}: pip install '{package}'") from None
        except Exception as error:  # of any library
            raise StorageError(f"{self.uri}: {_error_summary(error)}") from None
        return fs, str(root).rstrip("/")

    @property
    def _is_local(self) -> bool:
        return "://" not in self.uri

    @property
    def _filesystem(self) -> Any:
        return self._filesystem_and_root[0]

    @property
    def _root(self) -> str:
        return self._filesystem_and_root[1]

    def _absolute_path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _write_atomically(self, key: str, write: Callable[[str], Any]) -> None:
        """Write a file atomically, which object stores do themselves."""
        path = self._absolute_path(key)
        if not self._is_local:
            write(path)
            return
        target = Path(path)
        partial = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        write(str(partial))
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(target.parent)

    def _retry(
        self,
        failure: str,
        operation: Callable[[], T],
        is_missing: Callable[[], bool] = lambda: False,
    ) -> T:
        """Try an operation, and retry it after a while if it fails.

        Args:
            failure: description of the failure.
            operation: the operation.
            is_missing: whether a FileNotFoundError is about the file itself.

        Raises:
            FileNotFoundError: at once, if the file itself is missing.
            StorageError: it failed each time.
        """
        for pause in (*self._pauses, None):
            try:
                return operation()
            except Exception as error:  # of any library
                if isinstance(error, FileNotFoundError) and is_missing():
                    raise
                if pause is None:
                    raise StorageError(f"{self.uri}: {failure}: {_error_summary(error)}") from error
                _log.warning("%s: %s: %s: tried again", self.uri, failure, _error_summary(error))
            time.sleep(pause)
        raise AssertionError


def validate_uri(text: str) -> str:
    """Check a user's storage and return it as a URI or an absolute path.

    Raises:
        UserError: it is neither, or holds a secret.
    """
    scheme, separator, rest = text.partition("://")
    if not separator and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(f"--storage: {text}: is not a URI: write two slashes after the colon")
    if not separator:
        return str(Path(os.path.expanduser(text)).absolute())
    if scheme not in _OBJECT_STORES:
        raise UserError(
            f"--storage: {scheme}://: is not a supported kind of object store "
            f"({', '.join(_OBJECT_STORES)}): use one of those, or a folder that all machines can "
            "access"
        )
    if "@" in rest.partition("/")[0]:
        raise UserError(
            "--storage: a URI with a user or password would be written to disk: put them in the "
            "machine's own settings"
        )
    if not rest.strip("/"):
        raise UserError(
            f"--storage: {text}: does not name a folder: write {scheme}://BUCKET/FOLDER"
        )
    return text.rstrip("/")


def _walk_files(folder: str) -> list[tuple[str, int]]:
    """Return a folder's files and their sizes. A folder that cannot be read is an error."""

    def on_error(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # not there, or removed meanwhile
            raise error

    files = []
    for parent, _, names in os.walk(folder, onerror=on_error):
        for name in names:
            path = os.path.join(parent, name)
            with suppress(FileNotFoundError):
                files.append((path, os.stat(path).st_size))
    return files


def _error_summary(error: Exception) -> str:
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
