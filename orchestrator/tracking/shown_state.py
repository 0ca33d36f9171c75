"""Record what a store was shown last, and check whether it is unchanged.

A database file is not opened if it was shown the same before and nothing has written to it since:
its file and its artifacts are as recorded. Any other store must always be queried.
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
from orchestrator.storage.download import artifact_uri
from orchestrator.tracking.address import own_uri, sqlite_file, tracking_uri

_FILE = "shown.json"  # in a study's folder


@dataclass(frozen=True, kw_only=True)
class ShownState:
    """The results for the user when all of a study was shown in a store."""

    compare: str | None
    refused: Mapping[str, str]


class ShownRecord:
    """The record of a study in one store."""

    def __init__(self, workdir: Path, study: str, uri: str | None) -> None:
        """Create a record without reading anything yet.

        Args:
            workdir: the work directory.
            study: the study's name.
            uri: URI of the store, as for a run of the study.
        """
        address = tracking_uri(workdir, uri)
        self._key = hashlib.sha256(address.encode()).hexdigest()  # it may hold a password
        self._file = workdir / "studies" / study / _FILE
        self._database: Path | None = workdir.resolve() / "mlflow.db"
        self._workdir = workdir if address == own_uri(workdir) else None
        if self._workdir is None:
            self._database = None
            with suppress(Exception):  # an invalid address is reported when it is opened
                self._database = sqlite_file(address)

    def untouched(self) -> bool:
        """Return whether the store is unchanged since everything was shown in it."""
        return bool(self._left())

    def shown(self, mark: str) -> ShownState | None:
        """Return the state when the same was shown; None if the store must be queried."""
        left = self._left()
        if left.get("mark") != mark:
            return None
        return ShownState(compare=left.get("compare"), refused=dict(left.get("refused", {})))

    def keep(self, mark: str, shown: ShownState) -> None:
        """Record that everything was shown, and the state of the store.

        Args:
            mark: a hash of what was shown.
            shown: the results for the user.
        """
        if state := self._state():
            left = {"mark": mark, "state": state, **asdict(shown)}
            write_checksummed(self._file, {**self._known(), self._key: left})

    def _left(self) -> Mapping[str, Any]:
        """Return the record of the store; empty if the store has changed."""
        found, state = self._known().get(self._key), self._state()
        return found if isinstance(found, Mapping) and state and found.get("state") == state else {}

    def _known(self) -> dict[str, Any]:
        try:
            return read_checksummed(self._file)
        except (OSError, ValueError):
            return {}

    def _state(self) -> list[Any]:
        """Return what changes if the database is written to; empty if there is no such file."""
        found: list[Any] = []
        try:
            if self._database is None or not self._database.is_file():
                return []
        except OSError:  # such as for a name that is too long
            return []
        for end in ("", "-wal", "-journal"):  # what SQLite writes to
            with suppress(FileNotFoundError):
                file = self._database.with_name(self._database.name + end).stat()
                found.append([end, file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns])
        place = None if self._workdir is None else urlsplit(artifact_uri(self._workdir))
        if place is not None and place.scheme == "file":
            files = Path(unquote(place.path)).rglob("*")
            sizes = [file.stat().st_size for file in files if file.is_file()]
            found.append([len(sizes), sum(sizes)])
        return found
