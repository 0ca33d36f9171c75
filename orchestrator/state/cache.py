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
    CACHE_KEY,
    BrokenStoreError,
    LocalCaches,
    Manifest,
    build_lock,
    jobs_folder,
    partial_folder,
    read_lock_owner,
)
from chip_core.reference_cache.size import format_bytes
from chip_core.reference_cache.spec import CacheSpec
from chip_core.utils.files import read_records
from orchestrator.state.cache_plan import USES_FILE, cache_folder, open_caches
from orchestrator.state.ledger import Ledger
from orchestrator.storage.binding import find_storage
from orchestrator.utils.progress import track_progress

#: whole: usable. broken: unusable. half-made: left by an interrupted build, which the next build
#: continues. being made: by a running process.
CacheState = Literal["whole", "broken", "half-made", "being made"]

_SECONDS_PER_DAY = 24 * 3600.0


@dataclass(kw_only=True)
class CacheEntry:
    """A reference cache, complete or not."""

    folder: Path  # folder of the cache
    state: CacheState
    name: str  # display name of the reference pass
    bytes: int
    samples: int | None = None
    built_at: float | None = None  # build time, in seconds since 1970
    used_at: float | None = None  # time of the last read by a study, in seconds since 1970
    studies: list[str] = field(default_factory=list)  # studies that read it
    waiting_trials: int = 0  # number of trials that read it and are still to be trained
    problem: str | None = None

    @property
    def age_days(self) -> float:
        """Days since it was last used or built."""
        return (
            time.time() - (max(self.used_at or 0, self.built_at or 0) or time.time())
        ) / _SECONDS_PER_DAY


def list_caches(storage: Path, ledger: Ledger) -> list[CacheEntry]:
    """Return all caches of a storage, incomplete ones too, largest first, without hashing."""
    caches = open_caches(storage)
    uses = read_records(caches.cache / USES_FILE)
    sizes = caches.sizes()
    names = {name.split(".")[0] for name in sizes}
    entries = []
    for name in names:
        cache_uses = [use for use in uses if use["pass"] == name]
        trials = {
            trial
            for use in cache_uses
            for trial in use["trials"]
            if not ledger.was_removed(trial)  # no study needs it
        }
        entry = _inspect_cache(caches, caches.cache / name, sizes)
        entry.used_at = max((use["time"] for use in cache_uses), default=None)
        entry.studies = sorted({use["study"] for use in cache_uses})
        entry.waiting_trials = sum(ledger[trial].model is None for trial in trials)
        entries.append(entry)
    return sorted(entries, key=lambda kept: (-kept.bytes, kept.folder.name))


def verify_caches(entries: Sequence[CacheEntry], console: Console, storage: Path) -> None:
    """Hash every file of every whole cache, and set the state and problem of broken ones.

    With a remote storage, only sizes are compared.
    """
    caches = open_caches(storage)
    whole_entries = [entry for entry in entries if entry.state == "whole"]
    total_bytes = sum(entry.bytes for entry in whole_entries)
    done_bytes = 0
    with track_progress(console, "bytes checked", total_bytes) as step:
        for entry in whole_entries:
            try:
                caches.verify(entry.folder, again=True)
            except BrokenStoreError as error:
                entry.state, entry.problem = "broken", str(error)
            done_bytes += entry.bytes
            step(done_bytes)


def prunable_caches(entries: Sequence[CacheEntry], older_than: float | None) -> list[CacheEntry]:
    """Return the caches to remove: unneeded by any trial, broken, or unused for long.

    Args:
        entries: result of `list_caches`.
        older_than: in days; caches unused for longer are removed even if trials need them.
    """
    return [
        entry
        for entry in entries
        if entry.state != "being made"
        and (
            entry.state == "broken"
            or entry.waiting_trials == 0
            or (older_than is not None and entry.age_days > older_than)
        )
    ]


def prune_caches(entries: Sequence[CacheEntry], storage: Path) -> int:
    """Remove caches and return the number of bytes freed. Open files stay readable."""
    freed_bytes, caches = 0, open_caches(storage)
    for entry in entries:
        with build_lock(entry.folder):  # so that no build starts in the meantime
            caches.remove(entry.folder)
        freed_bytes += entry.bytes
    return freed_bytes


def cache_lines(entries: Sequence[CacheEntry], storage: Path) -> Iterator[RenderableType]:
    """Return the caches as a table for the terminal."""
    remote = find_storage(storage)
    cache = cache_folder(storage) if remote is None else f"{remote.uri}/{CACHE_KEY}"
    if not entries:
        yield Text(f"no reference passes in {cache}")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("reference pass", "store", "samples", "size", "last used", "state", "studies"):
        table.add_column(title, justify="right" if title in ("samples", "size") else "left")
    for entry in entries:
        problem = f": {entry.problem}" if entry.problem else ""
        table.add_row(
            Text(entry.name),
            entry.folder.name[:8],
            "—" if entry.samples is None else str(entry.samples),
            format_bytes(entry.bytes),
            f"{entry.age_days:.0f} days ago" if entry.age_days >= 1 else "today",
            Text(f"{entry.state}{problem}"),
            Text(_format_studies(entry)),
        )
    yield table
    yield Text(f"{format_bytes(sum(entry.bytes for entry in entries))} in {cache}")


def cache_json(entries: Sequence[CacheEntry]) -> list[dict[str, Any]]:
    """Return the caches as plain data."""
    return [
        {
            "pass": entry.name,
            "hash": entry.folder.name,
            "folder": str(entry.folder),
            "samples": entry.samples,
            "bytes": entry.bytes,
            "made": entry.built_at,
            "used": entry.used_at,
            "state": entry.state,
            "problem": entry.problem,
            "studies": entry.studies,
            "waiting": entry.waiting_trials,
        }
        for entry in entries
    ]


def _inspect_cache(caches: LocalCaches, folder: Path, sizes: Mapping[str, int]) -> CacheEntry:
    partial = partial_folder(folder)
    names = {folder.name, partial.name, jobs_folder(folder).name}
    total_bytes = sum(sizes.get(name, 0) for name in names)
    built_at = max((path.stat().st_mtime for path in _existing_folders(folder)), default=None)
    is_partial = partial.name in sizes
    if read_lock_owner(folder) is not None:
        return CacheEntry(
            folder=folder, state="being made", name="?", bytes=total_bytes, built_at=built_at
        )
    try:
        manifest = caches.stat(folder)
    except BrokenStoreError as error:
        name, problem = "?", None if is_partial else str(error)
        state: CacheState = "half-made" if is_partial else "broken"
        return CacheEntry(
            folder=folder,
            state=state,
            name=name,
            bytes=total_bytes,
            built_at=built_at,
            problem=problem,
        )
    return CacheEntry(
        folder=folder,
        state="whole",
        name=_display_name(manifest),
        bytes=total_bytes,
        samples=manifest.rows,
        built_at=manifest.made["time"],
    )


def _display_name(manifest: Manifest) -> str:
    identity = manifest.identity
    spec = CacheSpec(kind=identity["kind"], epoch=None, identity=identity)
    model = identity["model"]
    return f"{spec.name} ({model.get('hub') or str(model.get('content'))[:8]})"


def _existing_folders(folder: Path) -> list[Path]:
    """Return the existing folders of a cache: its own, the partial one, that of its workers."""
    folders = (folder, partial_folder(folder), jobs_folder(folder))
    return [path for path in folders if path.is_dir()]


def _format_studies(entry: CacheEntry) -> str:
    suffix = f" ({entry.waiting_trials} trials to run)" if entry.waiting_trials else ""
    return f"{', '.join(entry.studies) or '—'}{suffix}"
