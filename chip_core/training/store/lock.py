"""Who makes a store: one at a time, of all processes that see the folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chip_core.files import write_atomically

_LOOK_EVERY = 0.5  # seconds between two looks at a lock


@contextmanager
def making(folder: Path, on_wait: Callable[[str], None] = lambda who: None) -> Iterator[None]:
    """Be the only one who makes a store; the lock goes with the process, however it ends.

    Args:
        folder: the store's.
        on_wait: told once who is making it, where this process has to wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    told = False
    while True:
        with path.open("a+") as file:
            if _take(file.fileno(), path):
                write_atomically(_holder(path), f"process {os.getpid()} on {socket.gethostname()}")
                try:
                    yield
                finally:
                    # In this order: who waits for the lock looks whether its file is still there.
                    _holder(path).unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                return
        if not told:
            on_wait(who_makes(folder) or "another process")
            told = True
        time.sleep(_LOOK_EVERY)


def who_makes(folder: Path) -> str | None:
    """Return who is making a store: `process 17 on HOST`; None where nobody is."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        with path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except OSError:
        with suppress(OSError):
            return _holder(path).read_text(encoding="utf-8")
        return "another process"


def _take(handle: int, path: Path) -> bool:
    """Lock an open file, and say whether it is still the one of that name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ino == path.stat().st_ino
    except OSError:
        return False


def _holder(lock: Path) -> Path:
    return lock.with_suffix(".holder")
