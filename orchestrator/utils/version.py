"""Return the version of the code, and its commit in a checkout."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

import orchestrator


@dataclass(frozen=True, kw_only=True)
class CodeVersion:
    """The version of the code that made a figure."""

    version: str
    commit: str | None  # None: not from a checkout
    uncommitted: bool  # whether the checkout had uncommitted changes


@functools.cache
def code_version() -> CodeVersion:
    """Return the version of the running code."""
    folder = Path(orchestrator.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
        ).stdout.strip()

    commit, changed_files = None, ""
    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not a venv inside another checkout
        commit = git("rev-parse", "HEAD")
        changed_files = git("status", "--porcelain", "--untracked-files=no", ".", "../chip_core")
    except (OSError, subprocess.SubprocessError):
        pass
    return CodeVersion(
        version=orchestrator.__version__, commit=commit, uncommitted=bool(commit and changed_files)
    )
