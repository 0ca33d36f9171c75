"""Choose, check and redact the address of an MLflow store, and explain its errors."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import stat
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from chip_core.utils.errors import UserError, to_printable
from chip_core.utils.files import is_disk_full

_CONNECT_SECONDS = 5.0
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
#: Default ports of network stores.
_PORTS = {"https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
#: Error messages of databases that are busy, full or unreachable, which may be temporary.
_TRANSIENT_ERRORS = (
    "is locked", "table is locked", "disk is full", "disk i/o error", "no space left",
    "could not connect", "connection refused", "can't connect", "timed out", "timeout",
    "server closed", "lost connection", "gone away", "starting up", "too many connections",
)  # fmt: skip
_TOO_MANY_REQUESTS = 429  # in HTTP
_REDACTED = "***"
#: Each matches a secret of an address as its first group.
_SECRETS = (
    re.compile(r"://[^:/?#]*:([^/?#]*)@"),  # the password of a user
    re.compile(r"^https?://([^:/?#]*)@", re.IGNORECASE),  # a server's only user may be a token
    re.compile(r"[?&][^=&#]*(?:password|passwd|pwd|token|secret|key|sig|signature)=([^&#]+)"),
)


class StoreUnavailable(UserError):
    """The store cannot be used now, but may be later; the address is valid."""


class StoreRefused(UserError):
    """The store rejects a request permanently, so that something must be corrected."""


class InvalidUri(ValueError):
    """The address is invalid for a store."""


def resolve_uri(workdir: Path, uri: str | None) -> str:
    """Return the tracking URI: the given one, MLFLOW_TRACKING_URI, or the work directory's.

    The database in the work directory needs no server.
    """
    if uri is not None:
        return uri
    return os.environ.get("MLFLOW_TRACKING_URI") or workdir_uri(workdir)


def workdir_uri(workdir: Path) -> str:
    """Return the address of the database in a work directory."""
    file = f"{workdir.resolve()}/mlflow.db"
    if not any(character in file for character in "%?"):
        return f"sqlite:///{file}"
    # SQLAlchemy decodes escapes. MLflow would create the escaped folder, unless a driver is named.
    return f"sqlite+pysqlite:///{quote(file)}"


def redact_uri(uri: str) -> str:
    """Return an address with `***` instead of passwords and other secrets.

    A name without password before a database's host is its user, but before a server's host it may
    be a token, and is hidden.
    """
    for start, end in sorted(_secret_spans(uri), reverse=True):
        uri = uri[:start] + _REDACTED + uri[end:]
    return uri


def redact_text(text: str, uri: str) -> str:
    """Remove an address's secrets from a message."""
    text = text.replace(uri, redact_uri(uri))
    secrets = {uri[start:end] for start, end in _secret_spans(uri)}
    secrets |= {unquote(secret) for secret in secrets}  # as drivers write it
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, _REDACTED)
    return text


def _secret_spans(uri: str) -> Iterator[tuple[int, int]]:
    return (match.span(1) for pattern in _SECRETS for match in pattern.finditer(uri))


def server_address(uri: str) -> str:
    """Return a server's address without user, password and query."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def is_server(uri: str) -> bool:
    """Return whether a store is a server, as opposed to a database."""
    return uri.lower().startswith(("http://", "https://"))


def is_new(uri: str) -> bool:
    """Return whether a store is a SQLite file that does not exist yet."""
    file = sqlite_file(uri)
    return file is not None and not os.path.exists(file)  # also for a name that is too long


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for other stores.

    Raises:
        ValueError: the SQLite address names no file.
    """
    if urlsplit(uri).scheme.partition("+")[0] != "sqlite":
        return None
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    if url.host is not None:
        raise ValueError("a file's address has three slashes, or four and its whole path")
    name = (url.database or "").removeprefix("file:")
    if name in ("", ":memory:") or url.query.get("mode") == "memory":
        raise ValueError("an in-memory database is lost when the run ends: name a file")
    if "\0" in name:
        raise ValueError("its name contains a NUL")
    if name.endswith("/"):
        raise ValueError("it names a folder: name a file in it")
    return Path(name)


def validate_uri(uri: str) -> None:
    """Check the syntax of an address, without any connection.

    Raises:
        InvalidUri: no store can be there.
    """
    if not uri.strip():
        raise InvalidUri("it is empty")
    if uri != uri.strip() or not uri.isprintable():
        raise InvalidUri("it has spaces around it, or invisible characters")
    try:
        parts = urlsplit(uri)
        port = parts.port
        (parts.hostname or "").encode("idna")
        file = sqlite_file(uri)
    except Exception as error:  # SQLAlchemy has its own exceptions
        raise InvalidUri(str(error).split("\n")[0]) from None
    if file is None and parts.scheme in ("http", "https") and not parts.hostname:
        raise InvalidUri("it names no host")
    if port == 0:
        raise InvalidUri("port 0 cannot be used")
    if file is None and parts.scheme and any(map(str.isspace, parts.netloc)):
        raise InvalidUri("there is a space in its host")


def check_connection(uri: str) -> None:
    """Check within seconds that a store can be connected to, or that its file can be created.

    Raises:
        InvalidUri: no store can be there.
        ImportError: the database's driver is not installed.
        OSError: there is no answer at its address, or its file cannot be created.
        sqlite3.Error: its file cannot be opened or written, is not a database, or is locked.
        sqlalchemy.exc.SQLAlchemyError: the database refuses the connection.
    """
    validate_uri(uri)
    parts, file = urlsplit(uri), sqlite_file(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme in _DATABASES:
        from sqlalchemy import NullPool, create_engine

        engine = create_engine(uri, poolclass=NullPool)  # imports the driver
    if file is not None:
        _check_file(file, created_folder=Path(uri.removeprefix("sqlite:///")).parent)
    elif scheme == "http":  # with TLS, only MLflow knows the trusted certificates
        with suppress(urllib.error.HTTPError):  # it answers
            health = f"{server_address(uri)}/health"
            urllib.request.urlopen(health, timeout=_CONNECT_SECONDS).close()
    elif scheme in _PORTS:
        if parts.hostname and scheme not in urllib.request.getproxies():
            address = parts.hostname, parts.port or _PORTS[scheme]
            socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
        if scheme in _DATABASES:
            engine.connect().close()


def _check_file(file: Path, *, created_folder: Path) -> None:
    """Check that a SQLite file can be written, or created in the folder that MLflow creates."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise InvalidUri(error.strerror) from None
    if mode is not None:
        if not stat.S_ISREG(mode):
            raise InvalidUri("it names a folder" if stat.S_ISDIR(mode) else "it names no file")
        with closing(sqlite3.connect(file, timeout=_CONNECT_SECONDS)) as database:
            database.execute("PRAGMA schema_version").fetchone()
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        return
    if file.is_symlink():
        raise InvalidUri("it is a broken link")
    if file.parent != created_folder and not file.parent.exists():  # MLflow does not decode escapes
        raise InvalidUri(f"there is no folder {file.parent}")
    parent = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InvalidUri(f"{parent}: {error.strerror}") from None


def explain_error(error: Exception, uri: str) -> UserError:
    """Convert a store's exception to an error with one line for the user."""
    transient, text = _is_transient(error, uri), str(error)
    address = to_printable(redact_uri(uri))
    reason = to_printable(" ".join(redact_text(text.split("\n")[0], uri).split()), 300)
    if "unsupported URI" in reason:
        error, reason = InvalidUri(), "MLflow does not support this kind of store"
    other = "name another store with --tracking-uri"
    if isinstance(error, InvalidUri):
        problem = (
            f"cannot be used ({reason}): give --tracking-uri (or MLFLOW_TRACKING_URI) an address "
            "such as sqlite:///FILE or http://HOST:PORT"
        )
    elif isinstance(error, ImportError):
        problem = f"needs a package that is not installed ({reason}): install it, or {other}"
    elif "out-of-date database schema" in text:
        upgrade = f"back it up and run `mlflow db upgrade {address}`"
        problem = f"has another MLflow version's schema: {upgrade}, or {other}"
    elif "maintenance mode" in reason:
        problem = (
            "is a folder, which MLflow no longer supports: name a database, such as sqlite:///FILE"
        )
    elif is_server(uri):
        problem = f"does not answer as expected ({reason}): start the server, or {other}"
    elif transient:
        problem = f"cannot be used now ({reason}): unlock it, or free some space"
    else:
        problem = f"cannot be used ({reason}): fix it, or name another with --tracking-uri"
    message = f"the MLflow store {address if address.strip() else repr(uri)} {problem}"
    return StoreUnavailable(message) if transient else StoreRefused(message)


def _is_transient(error: Exception, uri: str) -> bool:
    """Return whether an error of a store may be gone later."""
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
        return True
    text = str(error).lower()
    if "database schema" in text or "maintenance mode" in text:
        return False
    if any(message in text for message in _TRANSIENT_ERRORS):
        return True
    if isinstance(error, OSError):
        return is_server(uri)  # no route, no network
    status = getattr(error, "get_http_status_code", None)  # of MLflow's exceptions
    code = status() if callable(status) else 0
    return is_server(uri) and (code >= 500 or code == _TOO_MANY_REQUESTS)
