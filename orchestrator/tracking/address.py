"""Parse and check an MLflow address, and hide its secrets."""

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

from chip_core.utils.errors import UserError, printable
from chip_core.utils.files import is_disk_full

_CONNECT_SECONDS = 5.0
#: Default ports of network stores.
_PORTS = {"https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
#: Error messages of databases that are busy, full or unreachable, which may be temporary.
_FOR_A_WHILE = (
    "is locked", "table is locked", "disk is full", "disk i/o error", "no space left",
    "could not connect", "connection refused", "can't connect", "timed out", "timeout",
    "server closed", "lost connection", "gone away", "starting up", "too many connections",
)  # fmt: skip
_TOO_MANY = 429  # requests, in HTTP
_HIDDEN = "***"
_USER = re.compile(r"([^:/?#]+)://([^/?#]*)@")
#: Secret values in a query, by the ends of their names.
_QUERY = re.compile(r"([?&][^=&#]*(?:password|passwd|pwd|token|secret|key|sig|signature)=)([^&#]+)")


class StoreUnavailable(UserError):
    """The store cannot be used now, but may be later; the address is valid."""


class StoreRefused(UserError):
    """The store rejects a request permanently, so that something must be corrected."""


class WrongAddress(ValueError):
    """The address is invalid for a store."""


def tracking_uri(workdir: Path, given: str | None) -> str:
    """Return the tracking URI: the given one, MLFLOW_TRACKING_URI, or the work directory's.

    The database in the work directory needs no server.
    """
    if given is not None:
        return given
    return os.environ.get("MLFLOW_TRACKING_URI") or own_uri(workdir)


def own_uri(workdir: Path) -> str:
    """Return the address of the database in a work directory."""
    file = f"{workdir.resolve()}/mlflow.db"
    if not any(sign in file for sign in "%?"):
        return f"sqlite:///{file}"
    # SQLAlchemy decodes escapes. MLflow would create the escaped folder, unless a driver is named.
    return f"sqlite+pysqlite:///{quote(file)}"


def shown_address(uri: str) -> str:
    """Return an address with `***` instead of passwords and other secrets.

    A name without password before a database's host is its user, but before a server's host it may
    be a token, and is hidden.
    """

    def user(found: re.Match[str]) -> str:
        name, colon, _ = found[2].partition(":")
        lone = _HIDDEN if is_server(uri) else name
        return f"{found[1]}://{f'{name}:{_HIDDEN}' if colon else lone}@"

    return _QUERY.sub(rf"\g<1>{_HIDDEN}", _USER.sub(user, uri, count=1))


def without_secrets(text: str, uri: str) -> str:
    """Remove an address's secrets from a message."""
    text = text.replace(uri, shown_address(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def _secrets(uri: str) -> Iterator[str]:
    found = [match[2] for match in _QUERY.finditer(uri)]
    if user := _USER.match(uri):
        name, colon, password = user[2].partition(":")
        found += [password] if colon else [name] if is_server(uri) else []
    for secret in filter(None, found):
        yield secret
        yield unquote(secret)  # as drivers write it


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
        raise ValueError("a database in memory is gone with the run: name a file")
    if "\0" in name:
        raise ValueError("its name has a NUL")
    if name.endswith("/"):
        raise ValueError("it names a folder: name a file in it")
    return Path(name)


def check_written(uri: str) -> None:
    """Check the syntax of an address, without any connection.

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
    except Exception as error:  # SQLAlchemy has its own exceptions
        raise WrongAddress(str(error).split("\n")[0]) from None
    if file is None and parts.scheme in ("http", "https") and not parts.hostname:
        raise WrongAddress("it names no host")
    if port == 0:
        raise WrongAddress("nobody listens on port 0")
    if file is None and parts.scheme and any(sign.isspace() for sign in parts.netloc):
        raise WrongAddress("there is a space in its host")


def check_reachable(uri: str) -> None:
    """Check quickly whether a store is reachable, since MLflow itself would try for minutes.

    Raises:
        WrongAddress: no store can be there.
        ImportError: the database's driver is not installed.
        OSError: there is no answer at its address, or its file cannot be created.
        sqlite3.Error: its file cannot be opened or written, is no database, or is locked.
        sqlalchemy.exc.SQLAlchemyError: the database refuses the connection.
    """
    check_written(uri)
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    file = sqlite_file(uri)
    if scheme in ("sqlite", "postgresql", "mysql", "mssql"):
        from sqlalchemy import NullPool, create_engine

        engine = create_engine(uri, poolclass=NullPool)  # imports the driver
    if file is not None:
        _check_file(file, makes=Path(uri.removeprefix("sqlite:///")).parent)
    elif scheme == "http":  # with TLS, only MLflow knows the trusted certificates
        place = parts.netloc.rpartition("@")[2] + parts.path.rstrip("/")
        with suppress(urllib.error.HTTPError):  # it answers
            urllib.request.urlopen(f"http://{place}/health", timeout=_CONNECT_SECONDS).close()
    elif scheme in _PORTS:
        if parts.hostname and scheme not in urllib.request.getproxies():
            port = parts.port or _PORTS[scheme]
            socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
        if scheme != "https":
            engine.connect().close()


def _check_file(file: Path, *, makes: Path) -> None:
    """Check that a SQLite file can be written or created. MLflow creates the folder `makes`."""
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
    if file.parent != makes and not file.parent.exists():  # MLflow does not decode escapes
        raise WrongAddress(f"there is no folder {file.parent}")
    above = next(folder for folder in file.absolute().parents if folder.exists())
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise WrongAddress(f"{above}: {error.strerror}") from None


def told(error: Exception, uri: str) -> UserError:
    """Convert a store's exception to an error with one line for the user."""
    away, whole = _is_away(error, uri), str(error)
    address = printable(shown_address(uri))
    said = printable(" ".join(without_secrets(whole.split("\n")[0], uri).split()), 300)
    if "unsupported URI" in said:
        error, said = WrongAddress(), "MLflow knows no store of this kind"
    if isinstance(error, WrongAddress):
        line = (
            f"cannot be used ({said}): give --tracking-uri (or MLFLOW_TRACKING_URI) an address as "
            "sqlite:///FILE or http://HOST:PORT"
        )
    elif isinstance(error, ImportError):
        line = (
            f"needs a package that is not installed ({said}): install it, or name another store by "
            "--tracking-uri"
        )
    elif "out-of-date database schema" in whole:
        line = (
            f"has another MLflow version's schema: back it up and run `mlflow db upgrade {address}`"
            ", or name another store by --tracking-uri"
        )
    elif "maintenance mode" in said:
        line = "is a folder, which MLflow gave up: name a database, as sqlite:///FILE"
    elif is_server(uri):
        line = (
            f"does not answer as it should ({said}): start the server, or name another store by "
            "--tracking-uri"
        )
    elif away:
        line = f"cannot be used now ({said}): free it, or make room for it"
    else:
        line = f"cannot be used ({said}): mend it, or name another by --tracking-uri"
    where = address if address.strip() else repr(uri)
    return (StoreUnavailable if away else StoreRefused)(f"the MLflow store {where} {line}")


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
