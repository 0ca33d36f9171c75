"""Files: user-written paths, writing that survives a crash, and private files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

from chip_core.utils.errors import DiskFullError, UserError, warn_once

_DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
#: With fewer free bytes, a write that failed without a reason is assumed to have failed for lack of
#: space.
_MIN_FREE_BYTES = 2**20
#: The last key of a JSON object with a checksum: a hash of the text before it.
_CHECKSUM_KEY = "checksum"
_CHECKSUM_PATTERN = re.compile(rb',\s*"checksum": "([0-9a-f]{16})"\s*\}\s*$')
#: Bytes of a folder's path: Linux allows 4,096 for a full path, and file names are appended.
_MAX_PATH_LENGTH = 4096 - 1024

#: The kinds of thing at a path.
PathKind = Literal["file", "folder", "any"]


def expand_path(path: str) -> Path:
    """Return a path with `~` expanded; that of an unknown user is unchanged."""
    return Path(os.path.expanduser(path))


def find_path_problem(path: Path, kind: PathKind = "any", *, exists: bool = False) -> str | None:
    """Return why a path can be neither read nor created; None if it can, as far as is known.

    Args:
        path: the path.
        kind: what may be there.
        exists: whether it must exist.
    """
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        if exists:
            return "does not exist"
        if os.path.islink(path):
            return "is a broken link: fix it, or name another"
        if len(os.fsencode(path.absolute())) > _MAX_PATH_LENGTH:
            return "is too long a path: name a shorter one"
        return None
    except NotADirectoryError:
        return "is below a file: name another place"
    except OSError as error:
        return f"cannot be used ({error.strerror}): name another"
    except ValueError as error:  # a character that paths cannot contain
        return f"cannot be used ({error}): name another"
    if kind == "folder" and not is_folder:
        return "is a file: name a folder"
    if kind == "file" and is_folder:
        return "is a folder: name a file"
    return None


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is complete or absent, also after a power failure."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is complete or absent, also after a power failure.

    Raises:
        UserError: its path is a folder, or its folder's path is a file.
    """
    check_target_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_and_rename(content, path, path.with_name(f".{path.name}.{os.getpid()}.partial"))


def _write_and_rename(
    content: bytes, path: Path, partial: Path, opener: Callable[[str, int], int] | None = None
) -> None:
    """Write a file under a temporary name, durably, and rename it."""
    with open(partial, "wb", opener=opener) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def check_target_path(path: Path) -> None:
    """Check that the path of a new file is free or a file.

    Raises:
        UserError: something else is there.
    """
    existing_parent = next(filter(os.path.lexists, path.parents), path.parent)
    problem = None
    if path.is_dir():
        problem = f"{path}: is a folder, but a file must be written there"
    elif os.path.lexists(existing_parent) and not existing_parent.is_dir():
        problem = (
            f"{existing_parent}: is not a folder, but {path.name} must be written into one there"
        )
    if problem is not None:
        raise UserError(f"{problem}: move it away and run the same command again")


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; NaN and infinities are refused."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_checksummed(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically, with a checksum that `read_checksummed` verifies."""
    write_atomically(path, add_checksum(json.dumps(dict(value), indent=1, allow_nan=False)) + "\n")


def read_checksummed(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file after verifying its checksum, if it has one.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no object, or was changed since it was written.
    """
    return parse_checksummed(path.read_bytes())


def add_checksum(text: str) -> str:
    """Return a JSON object's text with its checksum as the last key."""
    head = text.rstrip().removesuffix("}").rstrip()
    if head == "{":
        return text  # an empty object cannot change
    comma, end = (",\n ", "\n}") if "\n" in head else (", ", "}")
    return f'{head}{comma}"{_CHECKSUM_KEY}": "{_checksum(head.encode())}"{end}'


def parse_checksummed(content: bytes) -> dict[str, Any]:
    """Return the object of a text, verifying and removing a checksum of `add_checksum`.

    Raises:
        ValueError: it is not a JSON object, or was changed since.
    """
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    checksum = _CHECKSUM_PATTERN.search(content)
    if checksum is not None and checksum[1].decode() != _checksum(content[: checksum.start()]):
        raise ValueError("it has changed since it was written")
    value.pop(_CHECKSUM_KEY, None)
    return value


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return a file's sha256, in hex.

    It is computed once per process, and again if size, times or inode have changed.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    return _cached_hash(
        path.absolute(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
    )


@cache
def _cached_hash(path: Path, *cache_key: int) -> str:
    return hash_file(path)


def hash_file(path: Path) -> str:
    """Return a file's current sha256, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes) -> Any:
    """Return the value of an untrusted JSON text.

    Raises:
        ValueError: it is not JSON, is not UTF-8, is nested too deep, or has a number with too many
            digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: Path, max_bytes: int = 2**26) -> Any:
    """Return the value of an untrusted JSON file.

    Args:
        path: the file.
        max_bytes: the most bytes it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer, or as `parse_json`.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is longer than {max_bytes:,} bytes")
    return parse_json(content)


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Make everything in a folder durable."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for subfolder in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(subfolder)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an exception, or one of its causes, says that a disk is full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DiskFullError) or (
            isinstance(cause, OSError) and cause.errno in _DISK_FULL_ERRNOS
        ):
            return True
        # from Rust and C++
        if any(os.strerror(number) in str(cause) for number in _DISK_FULL_ERRNOS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def convert_disk_full(purpose: str, folder: Path) -> Iterator[None]:
    """Turn an error from a full disk into one line.

    Raises:
        DiskFullError: instead of the library's exception, which may not name the cause.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) and _free_bytes(folder) >= _MIN_FREE_BYTES:
            raise
        raise DiskFullError(
            f"no space for {purpose}: the disk of {folder} is full: free some space and run the "
            "study again"
        ) from None


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


@dataclass(frozen=True, kw_only=True)
class JsonlLine:
    """One line of a JSON-lines file."""

    number: int  # from 1
    start: int  # bytes before it
    text: bytes  # without its newline
    record: dict[str, Any] | None  # None: it is broken
    truncated: bool  # the last one, cut off by a crash before it was announced


def read_lines(path: Path) -> list[JsonlLine]:
    """Return a JSON-lines file's lines, without empty ones, with broken ones; none without a file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines, start = [], 0
    for number, text in enumerate(content.split(b"\n"), start=1):
        if text.strip():
            record = None
            with suppress(ValueError):
                record = parse_checksummed(text)
            is_last = start + len(text) == len(content)
            truncated = is_last and record is None
            lines.append(
                JsonlLine(number=number, start=start, text=text, record=record, truncated=truncated)
            )
        start += len(text) + 1
    return lines


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file.

    A broken line is left out with a warning; a last line that was cut off is left out.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        warn_once(f"{path}: cannot be read ({error.strerror}): its content is left out")
        return []
    for line in lines:
        if line.record is None and not line.truncated:
            warn_once(
                f"{path}: line {line.number} has changed since it was written: it is left out"
            )
    return [line.record for line in lines if line.record is not None]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record to a JSON-lines file that several processes write; durable on return.

    Raises:
        UserError: as `write_bytes`.
    """
    check_target_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _drop_truncated_record(file)
        file.write(format_record(record))
        file.flush()
        os.fsync(file.fileno())


def format_record(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of a JSON-lines file."""
    return add_checksum(json.dumps(dict(record), allow_nan=False)).encode() + b"\n"


def erase_line(path: Path, line: JsonlLine) -> None:
    """Overwrite a line with spaces if it is still as it was read, since others append meanwhile."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(line.start)
        if file.read(len(line.text)) == line.text:
            file.seek(line.start)
            file.write(b" " * len(line.text))
            file.flush()
            os.fsync(file.fileno())


class JsonlWriter:
    """An append-only JSON-lines file, fsynced in batches; one record per line."""

    def __init__(self, path: Path, *, sync_every: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._sync_every = sync_every
        self._synced = time.monotonic()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; it is durable after at most `sync_every` seconds or `close`."""
        self._file.write(format_record(record))
        if time.monotonic() - self._synced >= self._sync_every:
            self.sync()

    def sync(self) -> None:
        """Make the appended records durable."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable and close."""
        self.sync()
        self._file.close()


def _drop_truncated_record(file: BinaryIO) -> None:
    """Remove a last line that a crash cut off before it was announced."""
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while end and b"\n" not in tail:
        start = max(0, end - 65536)
        file.seek(start)
        tail, end = file.read(end - start) + tail, start
    if tail and not tail.endswith(b"\n"):
        file.truncate(end + tail.rfind(b"\n") + 1)


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can enter; an existing one keeps its permissions.

    Raises:
        OSError: it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a text file that only its owner can read, complete or not at all.

    It never has wider permissions, not even for a moment. Its folder is created as a private one if
    it does not exist.

    Raises:
        OSError: it cannot be written.
    """
    make_private(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    _write_and_rename(text.encode(), path, partial, _open_private)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o600)


def write_private_json(path: Path, value: Any) -> None:
    """Write a value as JSON, like `write_private`; NaN and infinities are refused."""
    write_private(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
