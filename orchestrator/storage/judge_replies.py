"""Share judges' replies between machines, so that none is lost.

Trials on one machine share its file (chip_core/evaluation/judge/cache.py). In the storage, each
machine has its own object, so that none overwrites another's replies.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from chip_core.utils.files import write_bytes
from orchestrator.storage.remote import Remote

#: The key of the folder of all replies.
JUDGE = "cache/judge"

#: Seconds between two copies of a file that grows.
EVERY = 30.0


class JudgeReplies:
    """The judges' replies of this machine."""

    def __init__(self, remote: Remote, kept: Path) -> None:
        """Create it without reading anything yet.

        Args:
            remote: the storage.
            kept: folder of this machine's copies from it.
        """
        self.folder = kept / JUDGE
        self._remote, self._name = remote, kept / "machine"
        self._file = self.folder / "replies.jsonl"
        self._copied: tuple[int, float] = (0, float("-inf"))  # bytes, when

    def pull(self) -> None:
        """Add the replies of other machines.

        Raises:
            StorageError: it cannot be read.
        """
        own = f"{JUDGE}/{self._machine()}.jsonl"
        others = [key for key in self._remote.sizes(JUDGE) if key != own]
        for content in self._remote.read(others).values():
            _add(self._file, content)
        self._copied = (self._size(), time.monotonic())

    def push(self, last: bool) -> None:
        """Save new replies to the storage, not too often except the last time.

        Raises:
            StorageError: it cannot be written.
        """
        size = self._size()
        if size > self._copied[0] and (last or time.monotonic() >= self._copied[1] + EVERY):
            with suppress(FileNotFoundError):
                self._remote.put(self._file, f"{JUDGE}/{self._machine()}.jsonl")
            self._copied = (size, time.monotonic())

    def _size(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def _machine(self) -> str:
        """Return the unique name of this machine."""
        if not self._name.exists():
            named = self._name.with_name(f".machine.{os.getpid()}")
            write_bytes(named, uuid.uuid4().hex.encode())
            with suppress(FileExistsError):  # another process was faster
                os.link(named, self._name)
            named.unlink()
        return self._name.read_text(encoding="ascii")


def _add(file: Path, content: bytes) -> None:
    """Append the records that a file lacks. An incomplete one is left out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        opened.seek(0)
        known = set(opened.read().split(b"\n"))
        fresh = [line for line in content.split(b"\n")[:-1] if line and line not in known]
        opened.write(b"".join(line + b"\n" for line in dict.fromkeys(fresh)))
        opened.flush()
        os.fsync(opened.fileno())
