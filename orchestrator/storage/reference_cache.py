"""Build, verify and read reference caches in a storage.

In a remote storage a cache is a folder as in a work directory. Its manifest is written last:
without one it does not exist. The work directory then has no part of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chip_core.reference_cache.folder import (
    FORMAT,
    MANIFEST,
    BrokenStoreError,
    FileFacts,
    Manifest,
    commit,
    parse_manifest,
    partial_folder,
    require_complete,
    stat,
    to_json_types,
    verify,
)
from chip_core.utils.files import write_bytes
from orchestrator.storage.binding import storage_of
from orchestrator.storage.remote import Remote

#: The key of the folder of all caches.
CACHE = "cache/reference"

_NOTE = ".note.json"


class ReferenceCacheStore:
    """The reference caches of a work directory or of its storage."""

    def __init__(self, workdir: Path) -> None:
        """Create it without reading anything yet.

        Args:
            workdir: the work directory.
        """
        self.cache = workdir / CACHE
        self.remote = storage_of(workdir)

    def stat(self, folder: Path, identity: Mapping[str, Any] | None = None) -> Manifest:
        """Return the manifest of a cache, and check that all files exist with their sizes.

        Raises:
            BrokenStoreError: it is not there, not whole, or of something else.
            StorageError: the storage cannot be read.
        """
        if self.remote is None:
            return stat(folder, identity)
        there = self.remote.sizes(_key(folder))
        found = self.remote.read([f"{_key(folder)}/{MANIFEST}"])
        if not found:
            raise BrokenStoreError("it is not there")
        manifest = parse_manifest(next(iter(found.values())))
        return require_complete(
            manifest, identity, lambda name: there.get(f"{_key(folder)}/{name}")
        )

    def verify(
        self, folder: Path, identity: Mapping[str, Any] | None = None, *, again: bool = False
    ) -> Manifest:
        """Return the manifest of a cache, and check that no file has changed.

        In a remote storage only sizes are checked: each machine that copies a cache hashes its copy
        before it reads it.

        Raises:
            BrokenStoreError: it is not there, not whole, or of something else.
            StorageError: the storage cannot be read.
        """
        if self.remote is None:
            return verify(folder, identity, rehash=again)
        return self.stat(folder, identity)

    def commit(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        rows: int,
        names: list[str],
        made: Any,
    ) -> Manifest:
        """Commit a finished cache; see chip_core.reference_cache.folder.commit.

        Raises:
            BrokenStoreError: a file is missing or incomplete.
            StorageError: the storage cannot be written.
        """
        if self.remote is None:
            return commit(folder, identity=identity, rows=rows, names=names, made=made)
        return self._commit(self.remote, folder, identity, rows, names, made)

    def remove(self, folder: Path) -> None:
        """Remove a cache from the storage, its manifest first, so that it no longer exists.

        Raises:
            StorageError: it cannot be removed.
        """
        if self.remote is not None:
            self.remote.remove([f"{_key(folder)}/{MANIFEST}"])
            for each in (folder, partial_folder(folder), jobs_folder(folder)):
                self.remote.remove_all(_key(each))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every folder of caches, by name.

        Raises:
            StorageError: the storage cannot be read.
        """
        found: dict[str, int] = {}
        if self.remote is not None:
            for key, size in self.remote.sizes(CACHE).items():
                name = key.removeprefix(f"{CACHE}/").partition("/")
                if name[1]:
                    found[name[0]] = found.get(name[0], 0) + size
            return found
        for folder in self.cache.iterdir() if self.cache.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                files = (path for path in folder.rglob("*") if path.is_file())
                found[folder.name] = sum(path.stat().st_size for path in files)
        return found

    def forget_jobs(self, folder: Path) -> None:
        """Remove the results of the jobs that built a cache, completely or in part.

        Raises:
            StorageError: they cannot be removed.
        """
        shutil.rmtree(jobs_folder(folder), ignore_errors=True)
        if self.remote is not None:
            self.remote.remove_all(_key(jobs_folder(folder)))

    def fetch_notes(self, folder: Path) -> None:
        """Fetch the workers' notes on the files of a cache that they build.

        Raises:
            StorageError: it cannot be read.
        """
        if self.remote is None:
            return
        partial = partial_folder(folder)
        notes = [key for key in self.remote.sizes(_key(partial)) if key.endswith(_NOTE)]
        for key, content in self.remote.read(notes).items():
            write_bytes(partial / key.rpartition("/")[2], content)

    def _commit(
        self,
        remote: Remote,
        folder: Path,
        identity: Mapping[str, Any],
        rows: int,
        names: list[str],
        made: Any,
    ) -> Manifest:
        partial = partial_folder(folder)
        there = remote.sizes(_key(partial))
        files = {}
        for name in names:
            facts = _facts(partial / f"{name}{_NOTE}")
            if facts is None or there.get(f"{_key(partial)}/{name}") != facts.bytes:
                raise BrokenStoreError(f"{name} was not made")
            files[name] = facts
        manifest = Manifest(identity=to_json_types(identity), rows=rows, files=files, made=made)
        remote.remove([f"{_key(folder)}/{MANIFEST}"])  # first, that of a broken cache
        for name in names:
            remote.copy(f"{_key(partial)}/{name}", f"{_key(folder)}/{name}")
        content = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()
        remote.write(f"{_key(folder)}/{MANIFEST}", content)
        remote.remove_all(_key(partial))
        self.forget_jobs(folder)
        shutil.rmtree(partial, ignore_errors=True)
        return manifest


def jobs_folder(folder: Path) -> Path:
    """Return the folder for the results of the jobs that build a cache."""
    return folder.with_name(f"{folder.name}.jobs")


def _key(folder: Path) -> str:
    return f"{CACHE}/{folder.name}"


def _facts(path: Path) -> FileFacts | None:
    try:
        return FileFacts(**json.loads(path.read_text(encoding="utf-8"))["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
