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
from orchestrator.storage.remote import RemoteStorage, validate_uri

#: File in a work directory that names its storage, if that is not the work directory itself.
STORAGE_FILE = "storage.json"
#: File in a storage that identifies it.
MARKER_FILE = "chip-ablate.json"
#: Folder in a storage with the leases of running studies.
LEASES_FOLDER = "drivers"
#: Seconds between two renewals of a lease, and seconds for which a lease is valid.
LEASE_RENEWAL_SECONDS, LEASE_SECONDS = 30.0, 180.0


def find_storage(workdir: Path) -> RemoteStorage | None:
    """Return a work directory's storage; None if it is the work directory itself.

    Raises:
        UserError: the file that names it cannot be read.
    """
    binding = _read_binding(workdir)
    return None if binding is None else RemoteStorage(binding["storage"])


def bind_storage(workdir: Path, requested_uri: str | None) -> RemoteStorage | None:
    """Bind a work directory to the storage of `--storage`, if given, and return its storage.

    Raises:
        UserError: it has another storage, or the storage cannot be used or has been replaced.
    """
    binding = _read_binding(workdir)
    if binding is None:
        return (
            None if requested_uri is None else _create_binding(workdir, validate_uri(requested_uri))
        )
    if requested_uri is not None and validate_uri(requested_uri) != binding["storage"]:
        raise UserError(
            f"--storage: {workdir} keeps its trials in {binding['storage']}: leave out --storage, "
            "or use another --workdir"
        )
    remote = RemoteStorage(binding["storage"])
    if _read_marker(remote) != binding["mark"]:
        raise UserError(
            f"--storage: {remote.uri}: is not the storage that {workdir} was created with: it is "
            "not mounted, or was emptied: mount it, or use another --workdir"
        )
    remote.require_writable()
    return remote


def _create_binding(workdir: Path, uri: str) -> RemoteStorage:
    if (workdir / "trials").exists():
        raise UserError(
            f"--storage: the trials of {workdir} are in the work directory itself: leave out "
            "--storage, or use another --workdir"
        )
    remote = RemoteStorage(uri)
    remote.require_writable()
    marker = _read_marker(remote)
    if marker is None:
        marker = uuid.uuid4().hex
        remote.write(MARKER_FILE, json.dumps({"mark": marker}).encode())
    make_private(workdir)
    binding = {"storage": uri, "mark": marker, "workdir": uuid.uuid4().hex}
    write_json(workdir / STORAGE_FILE, binding)
    return remote


def _read_marker(remote: RemoteStorage) -> str | None:
    """Return the identifier of a storage. An empty folder of the same name has none."""
    for content in remote.read([MARKER_FILE]).values():
        with suppress(ValueError, KeyError, TypeError):
            return str(parse_json(content)["mark"])
    return None


def _read_binding(workdir: Path) -> dict[str, str] | None:
    path = workdir / STORAGE_FILE
    if not path.exists():
        return None
    try:
        raw = read_json(path)
        return {key: str(raw[key]) for key in ("storage", "mark", "workdir")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}): remove it, and use --storage with "
            "another --workdir: finished work is found in the storage"
        ) from None


@contextmanager
def exclusive_lease(remote: RemoteStorage | None, workdir: Path) -> Iterator[None]:
    """Acquire an exclusive lease on the storage, as far as other leases are visible.

    Raises:
        UserError: a study of another work directory is running.
    """
    binding = _read_binding(workdir)
    if remote is None or binding is None:
        yield
        return
    lease_key = f"{LEASES_FOLDER}/{binding['workdir']}.json"
    ended = threading.Event()

    def write_lease() -> None:
        owner = {"host": socket.gethostname(), "workdir": str(workdir), "time": time.time()}
        remote.write(lease_key, json.dumps(owner).encode())

    def renew_lease() -> None:
        while not ended.wait(LEASE_RENEWAL_SECONDS):
            with suppress(StorageError):
                write_lease()

    write_lease()
    try:
        for content in remote.read(
            key for key in remote.sizes(LEASES_FOLDER) if key != lease_key
        ).values():
            with suppress(ValueError, KeyError, TypeError):
                other_owner = parse_json(content)
                if time.time() - float(other_owner["time"]) < LEASE_SECONDS:
                    raise UserError(
                        f"--storage: {remote.uri} is used by a study of {other_owner['workdir']} "
                        f"on {other_owner['host']}: wait until it ends (if it was killed: "
                        f"{LEASE_SECONDS / 60:.0f} minutes), or use another folder"
                    )
        thread = threading.Thread(target=renew_lease, name="storage", daemon=True)
        thread.start()
        yield
    finally:
        ended.set()
        with suppress(StorageError):
            remote.remove([lease_key])
