"""List, verify and prune the reference caches of a storage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.reference_cache.folder import (
    BrokenStoreError,
    Manifest,
    build_lock,
    lock_owner,
    partial_folder,
    remove,
)
from chip_core.reference_cache.size import format_bytes
from chip_core.reference_cache.spec import CacheSpec
from chip_core.utils.files import read_records
from orchestrator.state.cache_plan import USES, cache_folder
from orchestrator.state.ledger import Ledger
from orchestrator.storage.binding import storage_of
from orchestrator.storage.reference_cache import CACHE, ReferenceCacheStore, jobs_folder
from orchestrator.utils.progress import track_progress

#: whole: usable. broken: unusable. half-made: left by an interrupted build, which the next build
#: continues. being made: by a running process.
State = Literal["whole", "broken", "half-made", "being made"]

_DAY = 24 * 3600.0


@dataclass(kw_only=True)
class CacheEntry:
    """A reference cache, complete or not."""

    folder: Path  # folder of the cache
    state: State
    what: str  # display name of the reference pass
    bytes: int
    samples: int | None = None
    made: float | None = None  # build time, in seconds since 1970
    used: float | None = None  # last read by a study, in seconds since 1970
    studies: list[str] = field(default_factory=list)  # studies that read it
    waiting: int = 0  # number of trials that read it and are still to be trained
    problem: str | None = None

    @property
    def age(self) -> float:
        """Days since it was last used or built."""
        return (time.time() - (max(self.used or 0, self.made or 0) or time.time())) / _DAY


def list_caches(storage: Path, ledger: Ledger) -> list[CacheEntry]:
    """Return all caches of a storage, incomplete ones too, largest first, without hashing."""
    caches = ReferenceCacheStore(storage)
    uses = read_records(caches.cache / USES)
    sizes = caches.sizes()
    names = {name.split(".")[0] for name in sizes}
    found = []
    for name in names:
        of_this = [use for use in uses if use["pass"] == name]
        trials = {
            trial
            for use in of_this
            for trial in use["trials"]
            if not ledger.was_removed(trial)  # no study needs it
        }
        kept = _kept(caches, caches.cache / name, sizes)
        kept.used = max((use["time"] for use in of_this), default=None)
        kept.studies = sorted({use["study"] for use in of_this})
        kept.waiting = sum(ledger[trial].model is None for trial in trials)
        found.append(kept)
    return sorted(found, key=lambda kept: (-kept.bytes, kept.folder.name))


def verify_caches(stores: Sequence[CacheEntry], console: Console, storage: Path) -> None:
    """Hash every file of every whole cache, and set the state and problem of broken ones.

    With a remote storage, only sizes are compared.
    """
    caches = ReferenceCacheStore(storage)
    whole = [kept for kept in stores if kept.state == "whole"]
    total = sum(kept.bytes for kept in whole)
    done = 0
    with track_progress(console, "bytes checked", total) as step:
        for kept in whole:
            try:
                caches.verify(kept.folder, again=True)
            except BrokenStoreError as error:
                kept.state, kept.problem = "broken", str(error)
            done += kept.bytes
            step(done)


def prunable_caches(stores: Sequence[CacheEntry], older_than: float | None) -> list[CacheEntry]:
    """Return the caches to remove: unneeded by any trial, broken, or unused for long.

    Args:
        stores: result of `list_caches`.
        older_than: in days; caches unused for longer are removed even if trials need them.
    """
    return [
        kept
        for kept in stores
        if kept.state != "being made"
        and (
            kept.state == "broken"
            or kept.waiting == 0
            or (older_than is not None and kept.age > older_than)
        )
    ]


def prune_caches(stores: Sequence[CacheEntry], storage: Path) -> int:
    """Remove caches and return the number of bytes freed. Open files stay readable."""
    freed, caches = 0, ReferenceCacheStore(storage)
    for kept in stores:
        with build_lock(kept.folder):  # so that no build starts meanwhile
            caches.remove(kept.folder)
            for path in _paths(kept.folder):
                remove(path)
        freed += kept.bytes
    return freed


def cache_lines(stores: Sequence[CacheEntry], storage: Path) -> Iterator[RenderableType]:
    """Return the caches as a table for the terminal."""
    remote = storage_of(storage)
    cache = cache_folder(storage) if remote is None else f"{remote.uri}/{CACHE}"
    if not stores:
        yield Text(f"no reference passes in {cache}")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("reference pass", "store", "samples", "size", "last used", "state", "studies"):
        table.add_column(title, justify="right" if title in ("samples", "size") else "left")
    for kept in stores:
        broken = f": {kept.problem}" if kept.problem else ""
        table.add_row(
            Text(kept.what),
            kept.folder.name[:8],
            "—" if kept.samples is None else str(kept.samples),
            format_bytes(kept.bytes),
            f"{kept.age:.0f} days ago" if kept.age >= 1 else "today",
            Text(f"{kept.state}{broken}"),
            Text(_studies(kept)),
        )
    yield table
    yield Text(f"{format_bytes(sum(kept.bytes for kept in stores))} in {cache}")


def cache_json(stores: Sequence[CacheEntry]) -> list[dict[str, Any]]:
    """Return the caches as plain data."""
    return [
        {
            "pass": kept.what,
            "hash": kept.folder.name,
            "folder": str(kept.folder),
            "samples": kept.samples,
            "bytes": kept.bytes,
            "made": kept.made,
            "used": kept.used,
            "state": kept.state,
            "problem": kept.problem,
            "studies": kept.studies,
            "waiting": kept.waiting,
        }
        for kept in stores
    ]


def _kept(caches: ReferenceCacheStore, folder: Path, sizes: Mapping[str, int]) -> CacheEntry:
    partial = partial_folder(folder)
    names = {folder.name, partial.name, jobs_folder(folder).name}
    size = sum(sizes.get(name, 0) for name in names)
    made = max((path.stat().st_mtime for path in _paths(folder)), default=None)
    half_made = partial.name in sizes
    if lock_owner(folder) is not None:
        return CacheEntry(folder=folder, state="being made", what="?", bytes=size, made=made)
    try:
        manifest = caches.stat(folder)
    except BrokenStoreError as error:
        what, problem = "?", None if half_made else str(error)
        state: State = "half-made" if half_made else "broken"
        return CacheEntry(
            folder=folder, state=state, what=what, bytes=size, made=made, problem=problem
        )
    return CacheEntry(
        folder=folder,
        state="whole",
        what=_name(manifest),
        bytes=size,
        samples=manifest.rows,
        made=manifest.made["time"],
    )


def _name(manifest: Manifest) -> str:
    identity = manifest.identity
    one = CacheSpec(kind=identity["kind"], epoch=None, identity=identity)
    model = identity["model"]
    return f"{one.name} ({model.get('hub') or str(model.get('content'))[:8]})"


def _paths(folder: Path) -> list[Path]:
    """Return the existing folders of a cache: its own, the partial one, that of its workers."""
    folders = (folder, partial_folder(folder), jobs_folder(folder))
    return [path for path in folders if path.is_dir()]


def _studies(kept: CacheEntry) -> str:
    waiting = f" ({kept.waiting} trials to run)" if kept.waiting else ""
    return f"{', '.join(kept.studies) or '—'}{waiting}"
