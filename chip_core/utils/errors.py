"""The exceptions that users see. Each message is one line: what is wrong, where, what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterable

MAX_LINE_LENGTH = 2000  # characters of a message that are shown

_log = logging.getLogger("chip-ablate")
_logged_warnings: set[str] = set()
_warning_count = 0


def printable(line: str, max_length: int = MAX_LINE_LENGTH) -> str:
    """Return a line that is safe to show, whatever parts of an input it quotes.

    A terminal interprets control characters; they and other invisible ones are replaced by U+FFFD.
    """
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
    return text if len(text) <= max_length else f"{text[:max_length]}…"


def warn_once(line: str) -> None:
    """Log a warning, once per command however often it occurs."""
    global _warning_count
    _warning_count += 1
    if line not in _logged_warnings:
        _logged_warnings.add(line)
        _log.warning("%s", printable(line))


def warning_count() -> int:
    """Return the number of warnings so far; the difference counts those in between."""
    return _warning_count


def reset_warnings() -> None:
    """Start a new command: warnings of an earlier one are logged again."""
    _logged_warnings.clear()


def first_line(error: BaseException) -> str:
    """Return an error's first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def describe_error(error: BaseException) -> str:
    """Return an error's type and first line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class UserError(Exception):
    """An error that the user can fix: shown as one line without a traceback, exit code 2."""


class ConfigError(UserError):
    """One or more problems of a file, all at once.

    Each problem is a line `file: key.path: what is wrong, what would be right`.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class TrialError(Exception):
    """A trial cannot continue; the study does. The message is the trial's reason."""


class UnfitError(TrialError):
    """Weights do not fit the model that they are for; none of them was loaded."""


class MemoryFullError(TrialError):
    """A training does not fit the memory; a smaller micro-batch may."""


class DiskFullError(TrialError):
    """A file of a trial cannot be written because the disk is full."""


class StorageError(TrialError):
    """The storage cannot be reached: the attempt is lost, and may continue elsewhere or later."""


class StoppedError(TrialError):
    """A trial ends because of a stop request; it can be resumed."""


class NonFiniteLossError(TrialError):
    """The loss or a gradient is not finite; raised before the update is applied."""
