"""What goes wrong in an MLflow store, as one line: to be mended, or away for a while."""

from __future__ import annotations

import socket
import sqlite3
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from chip_core.errors import UserError, printable
from orchestrator.tracking.addresses import shown_address, without_secrets

_CONNECT_SECONDS = 5.0
#: Ports of what is asked by a network, where an address names none.
_PORTS = {"https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
#: What databases say that are busy, full or out of reach, and may be well again by themselves.
_FOR_A_WHILE = (
    "is locked", "table is locked", "disk is full", "disk i/o error", "no space left",
    "could not connect", "connection refused", "can't connect", "timed out", "timeout",
    "server closed", "lost connection", "gone away", "starting up", "too many connections",
)  # fmt: skip
_TOO_MANY = 429  # requests, in HTTP


class StoreAway(UserError):
    """A store that cannot be used now, and may be later: nobody has to mend an address."""


def is_server(uri: str) -> bool:
    """Return whether a store is a server, not a database."""
    return uri.startswith(("http://", "https://"))


def check_reachable(uri: str) -> None:
    """Find out soon whether a store is there at all: MLflow itself would try for minutes.

    Raises:
        OSError: nobody answers at its address.
        sqlite3.Error: its file cannot be opened, is none, or is locked.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        file = Path(uri.partition("///")[2].partition("?")[0])
        if file.name and file.exists():
            with sqlite3.connect(file, timeout=_CONNECT_SECONDS) as database:
                database.execute("PRAGMA schema_version").fetchone()
            database.close()
    elif scheme == "http":  # with TLS, only MLflow knows whom to trust
        try:
            place = parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")
            urllib.request.urlopen(f"http://{place}/health", timeout=_CONNECT_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # it answers
    elif scheme in _PORTS and parts.hostname and scheme not in urllib.request.getproxies():
        port = parts.port or _PORTS[scheme]
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()


def told(error: Exception, uri: str) -> UserError:
    """Return a store's trouble as one line for the user."""
    kind = StoreAway if _is_away(error, uri) else UserError
    return kind(_line(error, uri, away=kind is StoreAway))


def _is_away(error: Exception, uri: str) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, socket.herror)):
        return True
    text = str(error).lower()
    if "database schema" in text or "maintenance mode" in text:
        return False
    if any(words in text for words in _FOR_A_WHILE):
        return True
    if isinstance(error, OSError):
        return is_server(uri)  # no route, no network
    status = getattr(error, "get_http_status_code", None)  # of MLflow's exceptions
    code = status() if callable(status) else 0
    return is_server(uri) and (code >= 500 or code == _TOO_MANY)


def _line(error: Exception, uri: str, *, away: bool) -> str:
    address = shown_address(uri)
    said = without_secrets(str(error).split("\n")[0], uri)
    text = printable(" ".join(said.split()), 300)
    where = f"the MLflow store {address}"
    if "out-of-date database schema" in str(error):
        return (
            f"{where} has another MLflow version's schema: back it up and run "
            f"`mlflow db upgrade {address}`, or name another store by --tracking-uri"
        )
    if "maintenance mode" in text:
        return f"{where} is a folder, which MLflow gave up: name a database, as sqlite:///FILE"
    if is_server(uri):
        return (
            f"{where} does not answer as it should ({text}): "
            "start the server, or name another store by --tracking-uri"
        )
    if away:
        return f"{where} cannot be used now ({text}): free it, or make room for it"
    return f"{where} cannot be used ({text}): mend it, or name another by --tracking-uri"
