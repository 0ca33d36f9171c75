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
from orchestrator.storage.remote import RemoteStorage

#: The key of the folder of all replies.
JUDGE_KEY = "cache/judge"

#: Seconds between two copies of a file that grows.
COPY_SECONDS = 30.0


class JudgeReplies:
    """The judges' replies of this machine."""

    def __init__(self, remote: RemoteStorage, node_folder: Path) -> None:
        """Create it without reading anything yet.

        Args:
            remote: the storage.
            node_folder: folder of this machine's copies from it.
        """
        self.folder = node_folder / JUDGE_KEY
        self._remote, self._machine_file = remote, node_folder / "machine"
        self._file = self.folder / "replies.jsonl"
        self._last_copy: tuple[int, float] = (0, float("-inf"))  # bytes, when

    def pull(self) -> None:
        """Add the replies of other machines.

        Raises:
            StorageError: it cannot be read.
        """
        own_key = f"{JUDGE_KEY}/{self._machine_name()}.jsonl"
        other_keys = [key for key in self._remote.sizes(JUDGE_KEY) if key != own_key]
        for content in self._remote.read(other_keys).values():
            _append_missing(self._file, content)
        self._last_copy = (self._file_size(), time.monotonic())

    def push(self, is_last: bool) -> None:
        """Save new replies to the storage, not too often except the last time.

        Raises:
            StorageError: it cannot be written.
        """
        size = self._file_size()
        if size > self._last_copy[0] and (
            is_last or time.monotonic() >= self._last_copy[1] + COPY_SECONDS
        ):
            with suppress(FileNotFoundError):
                self._remote.put(self._file, f"{JUDGE_KEY}/{self._machine_name()}.jsonl")
            self._last_copy = (size, time.monotonic())

    def _file_size(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def _machine_name(self) -> str:
        """Return the unique name of this machine."""
        if not self._machine_file.exists():
            temporary_file = self._machine_file.with_name(f".machine.{os.getpid()}")
            write_bytes(temporary_file, uuid.uuid4().hex.encode())
            with suppress(FileExistsError):  # another process was faster
                os.link(temporary_file, self._machine_file)
            temporary_file.unlink()
        return self._machine_file.read_text(encoding="ascii")


def _append_missing(file: Path, content: bytes) -> None:
    """Append the records that are missing from a file. An incomplete one is left out."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        opened.seek(0)
        known_lines = set(opened.read().split(b"\n"))
        new_lines = [line for line in content.split(b"\n")[:-1] if line and line not in known_lines]
        opened.write(b"".join(line + b"\n" for line in dict.fromkeys(new_lines)))
        opened.flush()
        os.fsync(opened.fileno())
