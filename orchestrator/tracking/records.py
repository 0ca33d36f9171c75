"""Record in a study's folder how its runs ended, and what a store shows of them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from chip_core.utils.files import (
    append_record,
    read_checksummed,
    read_records,
    write_checksummed,
)
from orchestrator.plan.plan import Plan
from orchestrator.storage.download import artifact_uri
from orchestrator.tracking.address import resolve_uri, sqlite_file, workdir_uri
from orchestrator.tracking.runs import arm_fingerprints, arm_key
from orchestrator.tracking.views import ArmView, FinalSnapshot, Status, TrackingState


def save_snapshot(
    workdir: Path,
    study: str,
    arms: Sequence[ArmView],
    status: Status,
    ended: float | None,
    *,
    since: float = math.inf,
) -> None:
    """Save how a run ended, before a tracker shows it.

    Nothing is saved if the last snapshot is equal and was saved after `since`. Times are in seconds
    since 1970; `ended` is the end of the run's last trial.
    """
    entries = [
        {
            "arm": arm_key(view.arm),
            "holds": arm_fingerprints(view.arm),
            "figures": {k: v for k, v in view.figures.items() if math.isfinite(v)},
            "tags": dict(view.tags),
            "status": view.status,
        }
        for view in arms
    ]
    record = {"time": time.time(), "status": status, "ended": ended, "arms": entries}
    file = _snapshot_file(workdir, study)
    last: dict[str, Any] = next(reversed(read_records(file)), {})
    saved = last.get("time")
    if {**last, "time": record["time"]} == record and isinstance(saved, float) and saved >= since:
        return
    append_record(file, record)


def load_snapshots(workdir: Path, plan: Plan) -> list[FinalSnapshot]:
    """Return the saved ends of a study's runs, in order, with the arms that its plan still has."""
    arms = {arm_key(arm): arm for arm in plan.arms}

    def load_arms(entries: Sequence[Mapping[str, Any]]) -> Iterator[ArmView]:
        for entry in entries:
            arm = arms.get(entry["arm"])
            if arm is not None and entry["holds"].items() <= arm_fingerprints(arm).items():
                figures, tags, status = entry["figures"], entry["tags"], entry["status"]
                yield ArmView(arm=arm, figures=figures, tags=tags, status=status)

    return [
        FinalSnapshot(
            time=record["time"],
            status=record["status"],
            ended=record["ended"],
            arms=tuple(load_arms(record["arms"])),
        )
        for record in read_records(_snapshot_file(workdir, plan.study.name))
    ]


def _snapshot_file(workdir: Path, study: str) -> Path:
    return workdir / "studies" / study / "closed.jsonl"


class StoreRecord:
    """What a store was shown last of a study.

    A database file is not opened if it was shown the same before and nothing has written to it
    since: its file and its artifacts are as recorded. Any other store must always be queried.
    """

    def __init__(self, workdir: Path, study: str, uri: str | None) -> None:
        """Create the record of the store of a URI, as for a run, without reading it yet."""
        address = resolve_uri(workdir, uri)
        self._key = hashlib.sha256(address.encode()).hexdigest()  # it may hold a password
        self._file = workdir / "studies" / study / "shown.json"
        self._workdir = workdir if address == workdir_uri(workdir) else None
        self._database = workdir.resolve() / "mlflow.db" if self._workdir is not None else None
        if self._workdir is None:
            with suppress(Exception):  # an invalid address is reported when it is opened
                self._database = sqlite_file(address)

    def is_current(self) -> bool:
        """Return whether the store is unchanged since everything was shown in it."""
        return bool(self._current())

    def load(self, digest: str) -> TrackingState | None:
        """Return the store's state after what has this hash was shown; None if it has changed."""
        record = self._current()
        if record.get("mark") != digest:
            return None
        refused, compare = dict(record.get("refused", {})), record.get("compare")
        return TrackingState(pending=None, refused=refused, compare=compare)

    def save(self, digest: str, state: TrackingState) -> None:
        """Record that what has this hash was shown, and the state of the store."""
        if files := self._measure_files():
            shown = {"compare": state.compare, "refused": state.refused}
            record = {"mark": digest, "state": files, **shown}
            write_checksummed(self._file, {**self._load_all(), self._key: record})

    def _current(self) -> Mapping[str, Any]:
        """Return the record of the store; empty if the store has changed."""
        record, files = self._load_all().get(self._key), self._measure_files()
        if isinstance(record, Mapping) and files and record.get("state") == files:
            return record
        return {}

    def _load_all(self) -> dict[str, Any]:
        """Return the records of the study's stores by the hash of their addresses."""
        with suppress(OSError, ValueError):
            return read_checksummed(self._file)
        return {}

    def _measure_files(self) -> list[Any]:
        """Return what changes if the database is written to; empty if there is no such file."""
        measures: list[Any] = []
        try:
            if self._database is None or not self._database.is_file():
                return []
        except OSError:  # such as for a name that is too long
            return []
        for suffix in ("", "-wal", "-journal"):  # what SQLite writes to
            with suppress(FileNotFoundError):
                file = self._database.with_name(self._database.name + suffix).stat()
                measures.append([suffix, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns])
        if self._workdir is not None:
            location = urlsplit(artifact_uri(self._workdir))
            if location.scheme == "file":
                files = Path(unquote(location.path)).rglob("*")
                sizes = [file.stat().st_size for file in files if file.is_file()]
                measures.append([len(sizes), sum(sizes)])
        return measures
