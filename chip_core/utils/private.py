"""Files and folders that nobody else on the machine is to read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from chip_core.utils.files import sync_folder


def make_private(folder: Path) -> None:
    """Make a folder that its owner alone may enter; one that is there keeps its permissions.

    Raises:
        OSError: it cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a text file that its owner alone may read, whole or not at all.

    It is never there with wider permissions, not even for a moment. Its folder is made private
    where it is not there yet.

    Raises:
        OSError: it cannot be written.
    """
    make_private(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(partial, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def write_private_json(path: Path, value: Any) -> None:
    """Write a value as JSON, as `write_private`; NaN and infinities are refused."""
    write_private(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
