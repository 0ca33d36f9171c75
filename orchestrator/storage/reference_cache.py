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
from orchestrator.storage.binding import find_storage
from orchestrator.storage.remote import RemoteStorage

#: The key of the folder of all caches.
CACHE_KEY = "cache/reference"

_NOTE_SUFFIX = ".note.json"


class ReferenceCacheStore:
    """The reference caches of a work directory or of its storage."""

    def __init__(self, workdir: Path) -> None:
        """Create it without reading anything yet.

        Args:
            workdir: the work directory.
        """
        self.cache = workdir / CACHE_KEY
        self.remote = find_storage(workdir)

    def stat(self, folder: Path, identity: Mapping[str, Any] | None = None) -> Manifest:
        """Return the manifest of a cache, and check that all files exist with their sizes.

        Raises:
            BrokenStoreError: it is missing, incomplete, or of another pass.
            StorageError: the storage cannot be read.
        """
        if self.remote is None:
            return stat(folder, identity)
        remote_sizes = self.remote.sizes(_cache_key(folder))
        contents = self.remote.read([f"{_cache_key(folder)}/{MANIFEST}"])
        if not contents:
            raise BrokenStoreError("it does not exist")
        manifest = parse_manifest(next(iter(contents.values())))
        return require_complete(
            manifest, identity, lambda name: remote_sizes.get(f"{_cache_key(folder)}/{name}")
        )

    def verify(
        self, folder: Path, identity: Mapping[str, Any] | None = None, *, again: bool = False
    ) -> Manifest:
        """Return the manifest of a cache, and check that no file has changed.

        In a remote storage only sizes are checked: each machine that copies a cache hashes its copy
        before it reads it.

        Raises:
            BrokenStoreError: it is missing, incomplete, or of another pass.
            StorageError: the storage cannot be read.
        """
        if self.remote is None:
            return verify(folder, identity, rehash=again)
        return self.stat(folder, identity)

    def commit(
        self, folder: Path, *, identity: Mapping[str, Any], rows: int, names: list[str], made: Any
    ) -> Manifest:
        """Commit a finished cache; see chip_core.reference_cache.folder.commit.

        Raises:
            BrokenStoreError: a file is missing or incomplete.
            StorageError: the storage cannot be written.
        """
        if self.remote is None:
            return commit(folder, identity=identity, rows=rows, names=names, made=made)
        return self._commit_remote(self.remote, folder, identity, rows, names, made)

    def remove(self, folder: Path) -> None:
        """Remove a cache from the storage, its manifest first, so that it no longer exists.

        Raises:
            StorageError: it cannot be removed.
        """
        if self.remote is not None:
            self.remote.remove([f"{_cache_key(folder)}/{MANIFEST}"])
            for cache_folder in (folder, partial_folder(folder), jobs_folder(folder)):
                self.remote.remove_all(_cache_key(cache_folder))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every folder of caches, by name.

        Raises:
            StorageError: the storage cannot be read.
        """
        sizes: dict[str, int] = {}
        if self.remote is not None:
            for key, size in self.remote.sizes(CACHE_KEY).items():
                name = key.removeprefix(f"{CACHE_KEY}/").partition("/")
                if name[1]:
                    sizes[name[0]] = sizes.get(name[0], 0) + size
            return sizes
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
        if self.remote is not None:
            self.remote.remove_all(_cache_key(jobs_folder(folder)))

    def fetch_notes(self, folder: Path) -> None:
        """Fetch the workers' notes on the files of a cache that they build.

        Raises:
            StorageError: it cannot be read.
        """
        if self.remote is None:
            return
        partial = partial_folder(folder)
        notes = [
            key for key in self.remote.sizes(_cache_key(partial)) if key.endswith(_NOTE_SUFFIX)
        ]
        for key, content in self.remote.read(notes).items():
            write_bytes(partial / key.rpartition("/")[2], content)

    def _commit_remote(
        self,
        remote: RemoteStorage,
        folder: Path,
        identity: Mapping[str, Any],
        rows: int,
        names: list[str],
        made: Any,
    ) -> Manifest:
        partial = partial_folder(folder)
        remote_sizes = remote.sizes(_cache_key(partial))
        files = {}
        for name in names:
            facts = _read_facts(partial / f"{name}{_NOTE_SUFFIX}")
            if facts is None or remote_sizes.get(f"{_cache_key(partial)}/{name}") != facts.bytes:
                raise BrokenStoreError(f"{name} was not built")
            files[name] = facts
        manifest = Manifest(identity=to_json_types(identity), rows=rows, files=files, made=made)
        remote.remove([f"{_cache_key(folder)}/{MANIFEST}"])  # first, that of a broken cache
        for name in names:
            remote.copy(f"{_cache_key(partial)}/{name}", f"{_cache_key(folder)}/{name}")
        content = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()
        remote.write(f"{_cache_key(folder)}/{MANIFEST}", content)
        remote.remove_all(_cache_key(partial))
        self.remove_job_results(folder)
        shutil.rmtree(partial, ignore_errors=True)
        return manifest


def jobs_folder(folder: Path) -> Path:
    """Return the folder for the results of the jobs that build a cache."""
    return folder.with_name(f"{folder.name}.jobs")


def _cache_key(folder: Path) -> str:
    return f"{CACHE_KEY}/{folder.name}"


def _read_facts(path: Path) -> FileFacts | None:
    try:
        return FileFacts(**json.loads(path.read_text(encoding="utf-8"))["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
