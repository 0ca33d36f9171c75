"""The lock under which a store is built: by one process of all that see the folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from chip_core.files import write_atomically

_POLL = 0.5  # seconds between two tries


@contextmanager
def build_lock(folder: Path, on_wait: Callable[[str], None] = lambda who: None) -> Iterator[None]:
    """Hold the lock of a store that is built; it goes with the process, however that ends.

    Args:
        folder: the store's.
        on_wait: told once who holds it, where this process has to wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_file(folder))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_wait(lock_owner(folder) or "another process")
        lock.acquire(poll_interval=_POLL)
    try:
        write_atomically(_holder(folder), f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        _holder(folder).unlink(missing_ok=True)
        # While it is held: who waits for it takes no lock of a file that is gone.
        _file(folder).unlink(missing_ok=True)
        lock.release()


def lock_owner(folder: Path) -> str | None:
    """Return who is building a store: `process 17 on HOST`; None where nobody is."""
    if not _file(folder).exists():
        return None
    try:
        with FileLock(_file(folder), blocking=False):
            _file(folder).unlink(missing_ok=True)  # a dead process left it
        return None
    except Timeout:
        with suppress(OSError):
            return _holder(folder).read_text(encoding="utf-8")
        return "another process"


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _holder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.holder")
