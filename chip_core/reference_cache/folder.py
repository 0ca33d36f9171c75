"""A store's folder: there whole or not at all, checked before it is used.

`cache/reference/HASH/` holds `shard-00000.safetensors` and so on, perhaps `head.safetensors`, and
`manifest.json`: format version, the whole identity that HASH is the hash of, size and sha256 of
every other file. It is made as `HASH.partial/`, where each file has a note of its sha256 beside it,
and gets its name last. No file is written to once it is whole.

A file's sha256 is computed when it is opened on a machine for the first time, and again where its
size, times or inode are no longer what they were then; `.verified-HOST.json` keeps them.
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

#: Raised whenever the files' layout changes; part of every store's identity.
FORMAT = 1

MANIFEST = "manifest.json"

#: Rows of a shard.
SHARD = 256

_NAME_DIGITS = 32  # hex digits of the identity's hash that are the folder's name


class BrokenStoreError(Exception):
    """A store that cannot be used. Its message is why, in one line."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a manifest holds of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a store is."""

    identity: Mapping[str, Any]
    rows: int
    files: Mapping[str, FileFacts]
    made: Mapping[str, Any]  # when, where, by which versions, in how many seconds

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(facts.bytes for facts in self.files.values())


def store_folder(cache: Path, key: str) -> Path:
    """Return where the store of an identity's hash lies."""
    return cache / key[:_NAME_DIGITS]


def partial_folder(folder: Path) -> Path:
    """Return where a store is made."""
    return folder.with_name(f"{folder.name}.partial")


def shard_name(number: int) -> str:
    """Return a shard's file name."""
    return f"shard-{number:05d}.safetensors"


def shard_count(rows: int) -> int:
    """Return how many shards so many rows take."""
    return -(-rows // SHARD)


def shard_rows(number: int, rows: int) -> range:
    """Return which of so many rows lie in a shard."""
    return range(number * SHARD, min((number + 1) * SHARD, rows))


def shard_of(row: int) -> tuple[int, int]:
    """Return (shard, place within it) of a row."""
    return divmod(row, SHARD)


def read_manifest(folder: Path) -> Manifest:
    """Return a store's manifest.

    Raises:
        BrokenStoreError: there is none, or it cannot be read.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise BrokenStoreError("it is not there") from None
    except OSError as error:
        raise BrokenStoreError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    return parse_manifest(content)


def parse_manifest(content: bytes) -> Manifest:
    """Return a manifest of its file's content.

    Raises:
        BrokenStoreError: it cannot be read.
    """
    try:
        raw = json.loads(content)
        if raw["format"] != FORMAT:
            raise BrokenStoreError(f"its format is {raw['format']}, known is {FORMAT}")
        return Manifest(
            identity=raw["identity"],
            rows=int(raw["rows"]),
            files={name: FileFacts(**facts) for name, facts in raw["files"].items()},
            made=raw["made"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenStoreError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None


def stat(folder: Path, identity: Mapping[str, Any] | None = None) -> Manifest:
    """Return the manifest of a store all of whose files are there, in their sizes; no more is read.

    Args:
        folder: the store's.
        identity: what it has to be; None: whatever it is.

    Raises:
        BrokenStoreError: it is not there, not whole, or of something else.
    """

    def size(name: str) -> int | None:
        try:
            return (folder / name).stat().st_size
        except OSError:
            return None

    return require_whole(read_manifest(folder), identity, size)


def require_whole(
    manifest: Manifest, identity: Mapping[str, Any] | None, size: Callable[[str], int | None]
) -> Manifest:
    """Return a manifest all of whose files are there, in their sizes.

    Args:
        manifest: the store's.
        identity: what it has to be; None: whatever it is.
        size: of a file, by its name; None: it is not there.

    Raises:
        BrokenStoreError: one is not, or it is of something else.
    """
    if identity is not None and manifest.identity != plain(identity):
        raise BrokenStoreError("it is of another model, data set or setting")
    for name, facts in manifest.files.items():
        found = size(name)
        if found is None:
            raise BrokenStoreError(f"{name} is missing")
        if found != facts.bytes:
            raise BrokenStoreError(f"{name} is cut off: {found} of {facts.bytes} bytes")
    return manifest


def verify(
    folder: Path, identity: Mapping[str, Any] | None = None, *, again: bool = False
) -> Manifest:
    """Return the manifest of a store all of whose files are as they were written.

    Args:
        folder: the store's.
        identity: what it has to be; None: whatever it is.
        again: hash also what this machine has verified before.

    Raises:
        BrokenStoreError: it is not there, not whole, or of something else.
    """
    manifest = stat(folder, identity)
    verified = {} if again else _verified(folder)
    try:
        seen = {name: _mark(folder / name) for name in manifest.files}
        wanting = [name for name, mark in seen.items() if verified.get(name) != mark]
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing lets other threads run
            found = list(pool.map(lambda name: hash_file(folder / name), wanting))
    except OSError as error:
        raise BrokenStoreError(f"a file cannot be read ({error.strerror})") from None
    for name, sha256 in zip(wanting, found, strict=True):
        if sha256 != manifest.files[name].sha256:
            raise BrokenStoreError(f"{name} is corrupt: its sha256 is not the manifest's")
    if wanting:
        with suppress(OSError):  # a read-only store is hashed each time
            write_json(_marks(folder), seen)
    return manifest


def commit(
    folder: Path, *, identity: Mapping[str, Any], rows: int, names: list[str], made: Any
) -> Manifest:
    """Give a store that is made its name.

    Args:
        folder: the store's.
        identity: what it is.
        rows: how many samples.
        names: its files, which lie in its partial folder.
        made: where, when and how it was made.

    Raises:
        BrokenStoreError: a file is not there or not whole.
    """
    partial = partial_folder(folder)
    files = {}
    for name in names:
        facts = recorded_file(partial, name)
        if facts is None:
            raise BrokenStoreError(f"{name} was not made")
        files[name] = facts
    manifest = Manifest(identity=plain(identity), rows=rows, files=files, made=made)
    for each in partial.glob("*.note.json"):
        each.unlink()
    write_json(partial / MANIFEST, {"format": FORMAT, **asdict(manifest)})
    write_json(_marks(partial), {name: _mark(partial / name) for name in names})
    remove(folder)
    partial.replace(folder)
    sync_folder(folder.parent)
    return manifest


def record_file(partial: Path, name: str) -> None:
    """Make a file of a partial folder durable, and note its size and sha256 beside it."""
    path = partial / name
    path.chmod(partial.stat().st_mode & 0o666)  # whoever may look into the folder may read it
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(partial)
    facts = FileFacts(bytes=path.stat().st_size, sha256=hash_file(path))
    write_json(
        _note(partial, name),
        {"facts": asdict(facts), "host": socket.gethostname(), "mark": _mark(path)},
    )


def recorded_file(partial: Path, name: str) -> FileFacts | None:
    """Return a file's facts where it is in a partial folder, and whole; None where not.

    Its sha256 is computed where this machine has not done so since it was written.
    """
    path = partial / name
    try:
        raw = json.loads(_note(partial, name).read_text(encoding="utf-8"))
        facts = FileFacts(**raw["facts"])
        same = raw["host"] == socket.gethostname() and raw["mark"] == _mark(path)
        whole = same or facts == FileFacts(bytes=path.stat().st_size, sha256=hash_file(path))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if whole else None


def remove(folder: Path) -> None:
    """Remove a store, or what was begun of one; who has it open reads on."""
    gone = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
    try:
        folder.replace(gone)  # first of all it is not there any more
    except FileNotFoundError:
        return
    shutil.rmtree(gone)


def _verified(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        raw = json.loads(_marks(folder).read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            return raw
    return {}


def _marks(folder: Path) -> Path:
    return folder / f".verified-{socket.gethostname()}.json"


def _mark(path: Path) -> list[int]:
    """Return what tells that a file was not written to since."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _note(partial: Path, name: str) -> Path:
    return partial / f"{name}.note.json"


def plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as it comes out of JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


_POLL = 0.5  # seconds between two tries


@contextmanager
def build_lock(folder: Path, on_wait: Callable[[str], None] = lambda who: None) -> Iterator[None]:
    """Hold the lock of a store that is built; it goes with the process, however that ends.

    Args:
        folder: the store's.
        on_wait: told once who holds it, where this process has to wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_file(folder))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_wait(lock_owner(folder) or "another process")
        lock.acquire(poll_interval=_POLL)
    try:
        write_atomically(_holder(folder), f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        _holder(folder).unlink(missing_ok=True)
        # While it is held: who waits for it takes no lock of a file that is gone.
        _file(folder).unlink(missing_ok=True)
        lock.release()


def lock_owner(folder: Path) -> str | None:
    """Return who is building a store: `process 17 on HOST`; None where nobody is."""
    if not _file(folder).exists():
        return None
    try:
        with FileLock(_file(folder), blocking=False):
            _file(folder).unlink(missing_ok=True)  # a dead process left it
        return None
    except Timeout:
        with suppress(OSError):
            return _holder(folder).read_text(encoding="utf-8")
        return "another process"


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _holder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.holder")
