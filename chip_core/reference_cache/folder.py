"""A store's folder: complete or absent, and checked before it is used.

`cache/reference/HASH/` holds `shard-00000.safetensors` and so on, perhaps `head.safetensors`, and
`manifest.json`: format version, the full identity that HASH is the hash of, size and sha256 of
every other file. It is built as `HASH.partial/`, with a note of each file's sha256 next to the
file, and renamed last. A complete file is never written to.

A file's sha256 is computed when it is first opened on a machine, and again if its size, times or
inode have changed since; `.verified-HOST.json` keeps them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chip_core.utils.files import hash_file, sync_folder, write_atomically, write_json

#: Increased whenever the files' layout changes; part of every store's identity.
FORMAT = 1

MANIFEST = "manifest.json"

#: The folder of all stores, in a work directory or a storage.
CACHE_KEY = "cache/reference"

#: Rows of a shard.
SHARD_ROWS = 256

_NAME_DIGITS = 32  # hex digits of the identity's hash in the folder's name


class BrokenStoreError(Exception):
    """A store that cannot be used. Its message is the reason, in one line."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """A file's entry in a manifest."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of a store."""

    identity: Mapping[str, Any]
    rows: int
    files: Mapping[str, FileFacts]
    made: Mapping[str, Any]  # when, where, by which versions, in how many seconds

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(facts.bytes for facts in self.files.values())


def store_folder(cache: Path, key: str) -> Path:
    """Return the folder of the store with an identity's hash."""
    return cache / key[:_NAME_DIGITS]


def partial_folder(folder: Path) -> Path:
    """Return the folder in which a store is built."""
    return folder.with_name(f"{folder.name}.partial")


def jobs_folder(folder: Path) -> Path:
    """Return the folder for the results of the jobs that build a store."""
    return folder.with_name(f"{folder.name}.jobs")


def shard_name(number: int) -> str:
    """Return a shard's file name."""
    return f"shard-{number:05d}.safetensors"


def shard_count(rows: int) -> int:
    """Return the number of shards for a number of rows."""
    return -(-rows // SHARD_ROWS)


def shard_rows(number: int, rows: int) -> range:
    """Return the rows of a shard, given the total number of rows."""
    return range(number * SHARD_ROWS, min((number + 1) * SHARD_ROWS, rows))


def shard_of(row: int) -> tuple[int, int]:
    """Return (shard, position in it) of a row."""
    return divmod(row, SHARD_ROWS)


def read_manifest(folder: Path) -> Manifest:
    """Return a store's manifest.

    Raises:
        BrokenStoreError: it is missing, or cannot be read.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise BrokenStoreError("it does not exist") from None
    except OSError as error:
        raise BrokenStoreError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    return parse_manifest(content)


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in a file's content.

    Raises:
        BrokenStoreError: it cannot be read.
    """
    try:
        raw = json.loads(content)
        if raw["format"] != FORMAT:
            raise BrokenStoreError(f"its format is {raw['format']}, but only {FORMAT} is known")
        return Manifest(
            identity=raw["identity"],
            rows=int(raw["rows"]),
            files={name: FileFacts(**facts) for name, facts in raw["files"].items()},
            made=raw["made"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenStoreError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None


def stat(folder: Path, identity: Mapping[str, Any] | None = None) -> Manifest:
    """Return the manifest of a store whose files all exist with their sizes; check nothing else.

    Args:
        folder: the store's.
        identity: the expected one; None: any.

    Raises:
        BrokenStoreError: it is missing or incomplete, or has another identity.
    """

    def size(name: str) -> int | None:
        try:
            return (folder / name).stat().st_size
        except OSError:
            return None

    return require_complete(read_manifest(folder), identity, size)


def require_complete(
    manifest: Manifest, identity: Mapping[str, Any] | None, size: Callable[[str], int | None]
) -> Manifest:
    """Return a manifest whose files all exist with their sizes.

    Args:
        manifest: the store's.
        identity: the expected one; None: any.
        size: returns a file's size by its name; None if it is missing.

    Raises:
        BrokenStoreError: a file is missing or has another size, or the identity is another.
    """
    if identity is not None and manifest.identity != to_json_types(identity):
        raise BrokenStoreError("it belongs to another model, data set or setting")
    for name, facts in manifest.files.items():
        actual_size = size(name)
        if actual_size is None:
            raise BrokenStoreError(f"{name} is missing")
        if actual_size != facts.bytes:
            raise BrokenStoreError(f"{name} is cut off: {actual_size} of {facts.bytes} bytes")
    return manifest


def verify(
    folder: Path, identity: Mapping[str, Any] | None = None, *, rehash: bool = False
) -> Manifest:
    """Return the manifest of a store whose files are all unchanged since they were written.

    Args:
        folder: the store's.
        identity: the expected one; None: any.
        rehash: also hash files that this machine has verified before.

    Raises:
        BrokenStoreError: it is missing or incomplete, or has another identity.
    """
    manifest = stat(folder, identity)
    verified = {} if rehash else _read_verified_marks(folder)
    try:
        marks = {name: _file_mark(folder / name) for name in manifest.files}
        unverified = [name for name, file_mark in marks.items() if verified.get(name) != file_mark]
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the GIL
            hashes = list(pool.map(lambda name: hash_file(folder / name), unverified))
    except OSError as error:
        raise BrokenStoreError(f"a file cannot be read ({error.strerror})") from None
    for name, sha256 in zip(unverified, hashes, strict=True):
        if sha256 != manifest.files[name].sha256:
            raise BrokenStoreError(f"{name} is corrupt: its sha256 is not the manifest's")
    if unverified:
        with suppress(OSError):  # a read-only store is hashed each time
            write_json(_marks_file(folder), marks)
    return manifest


def commit(
    folder: Path, *, identity: Mapping[str, Any], rows: int, names: list[str], made: Any
) -> Manifest:
    """Give a complete store its final name.

    Args:
        folder: the store's.
        identity: its identity.
        rows: how many samples.
        names: its files, in its partial folder.
        made: where, when and how it was built.

    Raises:
        BrokenStoreError: a file is missing or incomplete.
    """
    partial = partial_folder(folder)
    files = {}
    for name in names:
        facts = read_recorded_file(partial, name)
        if facts is None:
            raise BrokenStoreError(f"{name} was not built")
        files[name] = facts
    manifest = Manifest(identity=to_json_types(identity), rows=rows, files=files, made=made)
    for note in partial.glob("*.note.json"):
        note.unlink()
    write_json(partial / MANIFEST, {"format": FORMAT, **asdict(manifest)})
    write_json(_marks_file(partial), {name: _file_mark(partial / name) for name in names})
    remove(folder)
    partial.replace(folder)
    sync_folder(folder.parent)
    return manifest


def record_file(partial: Path, name: str) -> None:
    """Make a file of a partial folder durable, and record its size and sha256 next to it."""
    path = partial / name
    path.chmod(partial.stat().st_mode & 0o666)  # as readable as the folder
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(partial)
    facts = FileFacts(bytes=path.stat().st_size, sha256=hash_file(path))
    write_json(
        _note_file(partial, name),
        {"facts": asdict(facts), "host": socket.gethostname(), "mark": _file_mark(path)},
    )


def read_recorded_file(partial: Path, name: str) -> FileFacts | None:
    """Return a file's facts if it is in a partial folder and complete, else None.

    Its sha256 is computed if this machine has not done so since it was written.
    """
    path = partial / name
    try:
        raw = json.loads(_note_file(partial, name).read_text(encoding="utf-8"))
        facts = FileFacts(**raw["facts"])
        is_unchanged = raw["host"] == socket.gethostname() and raw["mark"] == _file_mark(path)
        is_complete = is_unchanged or facts == FileFacts(
            bytes=path.stat().st_size, sha256=hash_file(path)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if is_complete else None


def remove(folder: Path) -> None:
    """Remove a store or a partial one; processes that have it open can still read it."""
    trash = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
    try:
        folder.replace(trash)  # make it unavailable before deleting it
    except FileNotFoundError:
        return
    shutil.rmtree(trash)


class LocalCaches:
    """The reference caches of a work directory, on this machine."""

    def __init__(self, workdir: Path) -> None:
        """Create it without reading anything yet.

        Args:
            workdir: the work directory.
        """
        self.cache = workdir / CACHE_KEY

    def stat(self, folder: Path, identity: Mapping[str, Any] | None = None) -> Manifest:
        """Return the manifest of a cache, and check that all files exist with their sizes.

        Raises:
            BrokenStoreError: it is not there, not whole, or of something else.
            StorageError: the storage cannot be read.
        """
        return stat(folder, identity)

    def verify(
        self, folder: Path, identity: Mapping[str, Any] | None = None, *, again: bool = False
    ) -> Manifest:
        """Return the manifest of a cache, and check that no file has changed.

        Raises:
            BrokenStoreError: it is not there, not whole, or of something else.
            StorageError: the storage cannot be read.
        """
        return verify(folder, identity, rehash=again)

    def commit(
        self, folder: Path, *, identity: Mapping[str, Any], rows: int, names: list[str], made: Any
    ) -> Manifest:
        """Commit a finished cache; see the function `commit`.

        Raises:
            BrokenStoreError: a file is missing or incomplete.
            StorageError: the storage cannot be written.
        """
        return commit(folder, identity=identity, rows=rows, names=names, made=made)

    def remove(self, folder: Path) -> None:
        """Remove a cache, complete or not, and what its jobs left.

        Raises:
            StorageError: it cannot be removed.
        """
        for path in (folder, partial_folder(folder), jobs_folder(folder)):
            if path.is_dir():
                remove(path)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every folder of caches, by name.

        Raises:
            StorageError: the storage cannot be read.
        """
        sizes: dict[str, int] = {}
        for folder in self.cache.iterdir() if self.cache.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                files = (path for path in folder.rglob("*") if path.is_file())
                sizes[folder.name] = sum(path.stat().st_size for path in files)
        return sizes

    def remove_job_results(self, folder: Path) -> None:
        """Remove the results of the jobs that built a cache, completely or in part.

        Raises:
            StorageError: they cannot be removed.
        """
        shutil.rmtree(jobs_folder(folder), ignore_errors=True)

    def fetch_notes(self, folder: Path) -> None:
        """Fetch the workers' notes on the files of a cache that they build; here they are.

        Raises:
            StorageError: it cannot be read.
        """


def _read_verified_marks(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        raw = json.loads(_marks_file(folder).read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            return raw
    return {}


def _marks_file(folder: Path) -> Path:
    return folder / f".verified-{socket.gethostname()}.json"


def _file_mark(path: Path) -> list[int]:
    """Return a value that changes when a file is written to."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _note_file(partial: Path, name: str) -> Path:
    return partial / f"{name}.note.json"


def to_json_types(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as JSON would return it."""
    normalized: dict[str, Any] = json.loads(json.dumps(identity))
    return normalized


_POLL_INTERVAL = 0.5  # seconds between two attempts


@contextmanager
def build_lock(folder: Path, on_wait: Callable[[str], None] = lambda owner: None) -> Iterator[None]:
    """Hold the lock of a store while it is built; the lock ends with the process.

    Args:
        folder: the store's.
        on_wait: called once with the lock's owner if this process has to wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_file(folder))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_wait(read_lock_owner(folder) or "another process")
        lock.acquire(poll_interval=_POLL_INTERVAL)
    try:
        write_atomically(_owner_file(folder), f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        _owner_file(folder).unlink(missing_ok=True)
        # Removed while the lock is held, so that nobody waiting locks a deleted file.
        _lock_file(folder).unlink(missing_ok=True)
        lock.release()


def read_lock_owner(folder: Path) -> str | None:
    """Return who is building a store: `process 17 on HOST`; None if nobody is."""
    if not _lock_file(folder).exists():
        return None
    try:
        with FileLock(_lock_file(folder), blocking=False):
            _lock_file(folder).unlink(missing_ok=True)  # a dead process left it
        return None
    except Timeout:
        with suppress(OSError):
            return _owner_file(folder).read_text(encoding="utf-8")
        return "another process"


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _owner_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.holder")
