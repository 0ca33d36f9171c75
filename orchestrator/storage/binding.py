"""Bind a work directory to one storage, and lease the storage exclusively."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chip_core.utils.errors import StorageError, UserError
from chip_core.utils.files import make_private, parse_json, read_json, write_json
from orchestrator.storage.remote import Remote, checked_uri

#: File in a work directory that names its storage, if that is not the work directory itself.
FILE = "storage.json"
#: File in a storage that identifies it.
MARK = "chip-ablate.json"
#: Folder in a storage with the leases of running studies.
DRIVERS = "drivers"
#: Seconds between two renewals of a lease, and seconds that a lease is valid.
CLAIM_EVERY, CLAIM_HOLDS = 30.0, 180.0


def storage_of(workdir: Path) -> Remote | None:
    """Return a work directory's storage; None if it is the work directory itself.

    Raises:
        UserError: the file that names it cannot be read.
    """
    noted = _noted(workdir)
    return None if noted is None else Remote(noted["storage"])


def bind_storage(workdir: Path, wish: str | None) -> Remote | None:
    """Bind a work directory to the storage of `--storage`, if given, and return its storage.

    Raises:
        UserError: it has another storage, or the storage cannot be used or has been replaced.
    """
    noted = _noted(workdir)
    if noted is None:
        return None if wish is None else _first_named(workdir, checked_uri(wish))
    if wish is not None and checked_uri(wish) != noted["storage"]:
        raise UserError(
            f"--storage: {workdir} keeps its trials in {noted['storage']}: leave --storage out, or "
            "give the study another --workdir"
        )
    remote = Remote(noted["storage"])
    if _mark_of(remote) != noted["mark"]:
        raise UserError(
            f"--storage: {remote.uri}: is not what it was when {workdir} began: it is not mounted, "
            "or was emptied: mount it, or give the study another --workdir"
        )
    remote.require()
    return remote


def _first_named(workdir: Path, uri: str) -> Remote:
    if (workdir / "trials").exists():
        raise UserError(
            f"--storage: the trials of {workdir} lie in it: leave --storage out, or give the study "
            "another --workdir"
        )
    remote = Remote(uri)
    remote.require()
    mark = _mark_of(remote)
    if mark is None:
        mark = uuid.uuid4().hex
        remote.write(MARK, json.dumps({"mark": mark}).encode())
    make_private(workdir)
    noted = {"storage": uri, "mark": mark, "workdir": uuid.uuid4().hex}
    write_json(workdir / FILE, noted)
    return remote


def _mark_of(remote: Remote) -> str | None:
    """Return the identifier of a storage, which an empty folder of the same name lacks."""
    for content in remote.read([MARK]).values():
        with suppress(ValueError, KeyError, TypeError):
            return str(parse_json(content)["mark"])
    return None


def _noted(workdir: Path) -> dict[str, str] | None:
    path = workdir / FILE
    if not path.exists():
        return None
    try:
        raw = read_json(path)
        return {key: str(raw[key]) for key in ("storage", "mark", "workdir")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}): remove it, and name the storage by "
            "--storage in another --workdir: what is done is found there"
        ) from None


@contextmanager
def exclusive_lease(remote: Remote | None, workdir: Path) -> Iterator[None]:
    """Acquire an exclusive lease on the storage, as far as other leases are visible.

    Raises:
        UserError: a study of another work directory is running.
    """
    noted = _noted(workdir)
    if remote is None or noted is None:
        yield
        return
    own = f"{DRIVERS}/{noted['workdir']}.json"
    end = threading.Event()

    def claim() -> None:
        who = {"host": socket.gethostname(), "workdir": str(workdir), "time": time.time()}
        remote.write(own, json.dumps(who).encode())

    def renew() -> None:
        while not end.wait(CLAIM_EVERY):
            with suppress(StorageError):
                claim()

    claim()
    try:
        for who in remote.read(key for key in remote.sizes(DRIVERS) if key != own).values():
            with suppress(ValueError, KeyError, TypeError):
                other = parse_json(who)
                if time.time() - float(other["time"]) < CLAIM_HOLDS:
                    raise UserError(
                        f"--storage: {remote.uri} is used by a study of {other['workdir']} on "
                        f"{other['host']}: wait until it ends (killed: {CLAIM_HOLDS / 60:.0f} "
                        "minutes), or name another folder"
                    )
        thread = threading.Thread(target=renew, name="storage", daemon=True)
        thread.start()
        yield
    finally:
        end.set()
        with suppress(StorageError):
            remote.remove([own])
