"""Record what a store was shown last, and whether it is still so.

A database in a file is left alone where it was shown the same before and nothing has written to it
since: its file and its artifacts are those that were noted. Any other store can tell only itself:
it is always asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from chip_core.utils.files import read_checksummed, write_checksummed
from orchestrator.storage.download import artifacts_of
from orchestrator.tracking.address import own_uri, sqlite_file, tracking_uri

_FILE = "shown.json"  # in a study's folder


@dataclass(frozen=True, kw_only=True)
class ShownState:
    """What was said of a store when all of a study was shown in it."""

    compare: str | None
    refused: Mapping[str, str]


class ShownRecord:
    """A study in one store."""

    def __init__(self, workdir: Path, study: str, uri: str | None) -> None:
        """Nothing is looked at yet.

        Args:
            workdir: the work directory.
            study: the study's name.
            uri: the store's, as for a run of the study.
        """
        address = tracking_uri(workdir, uri)
        self._key = hashlib.sha256(address.encode()).hexdigest()  # it may hold a password
        self._file = workdir / "studies" / study / _FILE
        self._database: Path | None = workdir.resolve() / "mlflow.db"
        self._workdir = workdir if address == own_uri(workdir) else None
        if self._workdir is None:
            self._database = None
            with suppress(Exception):  # of an address that is none: who opens it says so
                self._database = sqlite_file(address)

    def untouched(self) -> bool:
        """Return whether the store is as it was left when all was shown in it."""
        return bool(self._left())

    def shown(self, mark: str) -> ShownState | None:
        """Return what was said when the same was shown; None where the store is to be asked."""
        left = self._left()
        if left.get("mark") != mark:
            return None
        return ShownState(compare=left.get("compare"), refused=dict(left.get("refused", {})))

    def keep(self, mark: str, shown: ShownState) -> None:
        """Note that all was shown, and how the store was left.

        Args:
            mark: a hash of what was shown.
            shown: what was said.
        """
        if state := self._state():
            left = {"mark": mark, "state": state, **asdict(shown)}
            write_checksummed(self._file, {**self._known(), self._key: left})

    def _left(self) -> Mapping[str, Any]:
        """Return what was noted of the store; nothing where it is not as it was left."""
        found, state = self._known().get(self._key), self._state()
        return found if isinstance(found, Mapping) and state and found.get("state") == state else {}

    def _known(self) -> dict[str, Any]:
        try:
            return read_checksummed(self._file)
        except (OSError, ValueError):
            return {}

    def _state(self) -> list[Any]:
        """Return what tells that a database was written to; nothing where nothing does."""
        found: list[Any] = []
        try:
            if self._database is None or not self._database.is_file():
                return []
        except OSError:  # as of a name that is too long
            return []
        for end in ("", "-wal", "-journal"):  # what SQLite writes to
            with suppress(FileNotFoundError):
                file = self._database.with_name(self._database.name + end).stat()
                found.append([end, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns])
        place = None if self._workdir is None else urlsplit(artifacts_of(self._workdir))
        if place is not None and place.scheme == "file":
            files = Path(unquote(place.path)).rglob("*")
            sizes = [file.stat().st_size for file in files if file.is_file()]
            found.append([len(sizes), sum(sizes)])
        return found
