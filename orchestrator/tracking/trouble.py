"""What goes wrong in an MLflow store, as one line: to be mended, or away for a while."""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import tempfile
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from chip_core.errors import UserError, printable
from chip_core.files import is_full
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


class WrongAddress(ValueError):
    """An address at which no store can be."""


def is_server(uri: str) -> bool:
    """Return whether a store is a server, not a database."""
    return uri.lower().startswith(("http://", "https://"))


def is_new(uri: str) -> bool:
    """Return whether a store is a SQLite file that is still to be made."""
    file = sqlite_file(uri)
    return file is not None and not os.path.exists(file)  # a name that is too long is none


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database; None of another store.

    Raises:
        ValueError: it has none.
    """
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    if url.host is not None:
        raise ValueError("a file's address has three slashes, or four and its whole path")
    name = (url.database or "").removeprefix("file:")
    if name in ("", ":memory:") or url.query.get("mode") == "memory":
        raise ValueError("a database in memory is gone with the run: name a file")
    if "\0" in name:
        raise ValueError("its name has a NUL")
    if name.endswith("/"):
        raise ValueError("it names a folder: name a file in it")
    return Path(name)


def check_written(uri: str) -> None:
    """Check what an address says, without asking anybody.

    Raises:
        WrongAddress: no store can be there.
    """
    if not uri.strip():
        raise WrongAddress("it is empty")
    if uri != uri.strip() or not uri.isprintable():
        raise WrongAddress("it has spaces around it, or signs that cannot be seen")
    try:
        parts = urlsplit(uri)
        port = parts.port
        (parts.hostname or "").encode("idna")
        file = sqlite_file(uri)
    except ValueError as error:
        raise WrongAddress(str(error)) from None
    except Exception as error:  # SQLAlchemy's, of what is no address of a database
        raise WrongAddress(str(error).split("\n")[0]) from None
    if file is not None:
        return
    if parts.scheme in ("http", "https") and not parts.hostname:
        raise WrongAddress("it names no host")
    if port == 0:
        raise WrongAddress("nobody listens on port 0")
    if parts.scheme and any(sign.isspace() for sign in parts.netloc):
        raise WrongAddress("there is a space in its host")


def check_reachable(uri: str) -> None:
    """Find out soon whether a store is there at all: MLflow itself would try for minutes.

    Raises:
        WrongAddress: no store can be there.
        ImportError: the database's driver is not installed.
        OSError: nobody answers at its address, or its file cannot be made.
        sqlite3.Error: its file cannot be opened or written, is none, or is locked.
        sqlalchemy.exc.SQLAlchemyError: the database does not let us in.
    """
    check_written(uri)
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    file = sqlite_file(uri)
    if file is not None:
        _check_driver(uri)
        _check_file(file, makes=Path(uri.removeprefix("sqlite:///")).parent)
    elif scheme == "http":  # with TLS, only MLflow knows whom to trust
        try:
            place = parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")
            urllib.request.urlopen(f"http://{place}/health", timeout=_CONNECT_SECONDS).close()
        except urllib.error.HTTPError:
            pass  # it answers
    elif scheme in _PORTS:
        if scheme != "https":
            _check_driver(uri)
        if parts.hostname and scheme not in urllib.request.getproxies():
            port = parts.port or _PORTS[scheme]
            socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
        if scheme != "https":
            _connect(uri)


def _check_file(file: Path, *, makes: Path) -> None:
    """Check that a SQLite file can be written, or made.

    Args:
        file: the file.
        makes: the folder that MLflow makes for it.
    """
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise WrongAddress(error.strerror) from None
    if mode is not None:
        if not stat.S_ISREG(mode):
            raise WrongAddress("it names a folder" if stat.S_ISDIR(mode) else "it names no file")
        with closing(sqlite3.connect(file, timeout=_CONNECT_SECONDS)) as database:
            database.execute("PRAGMA schema_version").fetchone()
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        return
    if file.is_symlink():
        raise WrongAddress("it is a link to what is not there")
    if file.parent != makes and not file.parent.exists():  # it takes escapes as they are written
        raise WrongAddress(f"there is no folder {file.parent}")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        if is_full(error):
            raise
        raise WrongAddress(f"{above}: {error.strerror}") from None


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url

    make_url(uri).get_dialect().import_dbapi()


def _connect(uri: str) -> None:
    """Connect to a database once."""
    from sqlalchemy import NullPool, create_engine

    create_engine(uri, poolclass=NullPool).connect().close()


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
    address = printable(shown_address(uri))
    if not address.strip():
        address = repr(uri)
    said = without_secrets(str(error).split("\n")[0], uri)
    text = printable(" ".join(said.split()), 300)
    where = f"the MLflow store {address}"
    if "unsupported URI" in text:
        text, error = "MLflow knows no store of this kind", WrongAddress()
    if isinstance(error, WrongAddress):
        return (
            f"{where} cannot be used ({text}): give --tracking-uri (or MLFLOW_TRACKING_URI) an "
            "address as sqlite:///FILE or http://HOST:PORT"
        )
    if isinstance(error, ImportError):
        return (
            f"{where} needs a package that is not installed ({text}): install it, or name another "
            "store by --tracking-uri"
        )
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
