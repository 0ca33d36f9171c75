"""Build, verify and read reference caches in a remote storage.

There a cache is a folder as in a work directory. Its manifest is written last:
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
    CACHE_KEY,
    FORMAT,
    MANIFEST,
    BrokenStoreError,
    FileFacts,
    LocalCaches,
    Manifest,
    jobs_folder,
    parse_manifest,
    partial_folder,
    require_complete,
    to_json_types,
)
from chip_core.utils.files import write_bytes
from orchestrator.storage.remote import RemoteStorage

_NOTE_SUFFIX = ".note.json"


class RemoteCaches(LocalCaches):
    """The reference caches of a work directory's storage."""

    def __init__(self, workdir: Path, remote: RemoteStorage) -> None:
        """Create it without reading anything yet.

        Args:
            workdir: the work directory.
            remote: its storage.
        """
        super().__init__(workdir)
        self._remote = remote

    def stat(self, folder: Path, identity: Mapping[str, Any] | None = None) -> Manifest:
        """Return the manifest of a cache, and check that all files exist with their sizes."""
        remote_sizes = self._remote.sizes(_cache_key(folder))
        contents = self._remote.read([f"{_cache_key(folder)}/{MANIFEST}"])
        if not contents:
            raise BrokenStoreError("it does not exist")
        manifest = parse_manifest(next(iter(contents.values())))
        return require_complete(
            manifest, identity, lambda name: remote_sizes.get(f"{_cache_key(folder)}/{name}")
        )

    def verify(
        self, folder: Path, identity: Mapping[str, Any] | None = None, *, again: bool = False
    ) -> Manifest:
        """Return the manifest of a cache, and check sizes alone.

        Each machine that copies a cache hashes its copy before it reads it.
        """
        return self.stat(folder, identity)

    def commit(
        self, folder: Path, *, identity: Mapping[str, Any], rows: int, names: list[str], made: Any
    ) -> Manifest:
        """Commit a finished cache: copy its files to its name, its manifest last."""
        partial = partial_folder(folder)
        remote_sizes = self._remote.sizes(_cache_key(partial))
        files = {}
        for name in names:
            facts = _read_facts(partial / f"{name}{_NOTE_SUFFIX}")
            if facts is None or remote_sizes.get(f"{_cache_key(partial)}/{name}") != facts.bytes:
                raise BrokenStoreError(f"{name} was not built")
            files[name] = facts
        manifest = Manifest(identity=to_json_types(identity), rows=rows, files=files, made=made)
        self._remote.remove([f"{_cache_key(folder)}/{MANIFEST}"])  # first, that of a broken cache
        for name in names:
            self._remote.copy(f"{_cache_key(partial)}/{name}", f"{_cache_key(folder)}/{name}")
        content = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode()
        self._remote.write(f"{_cache_key(folder)}/{MANIFEST}", content)
        self._remote.remove_all(_cache_key(partial))
        self.remove_job_results(folder)
        shutil.rmtree(partial, ignore_errors=True)
        return manifest

    def remove(self, folder: Path) -> None:
        """Remove a cache, its manifest first, so that it no longer exists."""
        self._remote.remove([f"{_cache_key(folder)}/{MANIFEST}"])
        for cache_folder in (folder, partial_folder(folder), jobs_folder(folder)):
            self._remote.remove_all(_cache_key(cache_folder))
        super().remove(folder)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every folder of caches, by name."""
        sizes: dict[str, int] = {}
        for key, size in self._remote.sizes(CACHE_KEY).items():
            name = key.removeprefix(f"{CACHE_KEY}/").partition("/")
            if name[1]:
                sizes[name[0]] = sizes.get(name[0], 0) + size
        return sizes

    def remove_job_results(self, folder: Path) -> None:
        """Remove the results of the jobs that built a cache, completely or in part."""
        super().remove_job_results(folder)
        self._remote.remove_all(_cache_key(jobs_folder(folder)))

    def fetch_notes(self, folder: Path) -> None:
        """Fetch the workers' notes on the files of a cache that they build."""
        partial = partial_folder(folder)
        notes = [
            key for key in self._remote.sizes(_cache_key(partial)) if key.endswith(_NOTE_SUFFIX)
        ]
        for key, content in self._remote.read(notes).items():
            write_bytes(partial / key.rpartition("/")[2], content)


def _cache_key(folder: Path) -> str:
    return f"{CACHE_KEY}/{folder.name}"


def _read_facts(path: Path) -> FileFacts | None:
    try:
        return FileFacts(**json.loads(path.read_text(encoding="utf-8"))["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
