"""The exceptions a user can meet. Each is one line that says what, where and what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterable

LONGEST_LINE = 2000  # characters of a message that are shown

_log = logging.getLogger("chip-ablate")
_noticed: set[str] = set()
_notices = 0


def printable(line: str, longest: int = LONGEST_LINE) -> str:
    """Return a line as it may be shown, whatever of an input's own words is in it.

    A terminal obeys control characters; they and others that cannot be seen become U+FFFD.
    """
    seen = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    return seen if len(seen) <= longest else f"{seen[:longest]}…"


def warn_once(line: str) -> None:
    """Tell a line on the error stream for which nothing stops; once, however often it is found."""
    global _notices
    _notices += 1
    if line not in _noticed:
        _noticed.add(line)
        _log.warning("%s", printable(line))


def warning_count() -> int:
    """Return how often there was something to tell: who looks before and after knows of a part."""
    return _notices


def reset_warnings() -> None:
    """Begin a command: what was told in another is told again."""
    _noticed.clear()


def brief(error: BaseException) -> str:
    """Return an error's first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def describe_error(error: BaseException) -> str:
    """Return an error's type and first line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class UserError(Exception):
    """Something the user can mend: shown as one line without a traceback, exit code 2."""


class ConfigError(UserError):
    """One or more problems of a file, all at once.

    Each problem is a line `file: key.path: what, what would do`.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        """Go from process to process with all problems apart."""
        return type(self), (self.problems,)


class TrialError(Exception):
    """A trial cannot go on; the study does. Its message is the trial's reason."""


class UnfitError(TrialError):
    """Weights do not fit the model that they are for; none of them was put into it."""


class MemoryFullError(TrialError):
    """A training does not fit the memory; a smaller micro-batch may."""


class DiskFullError(TrialError):
    """Something of a trial cannot be written: the disk is full."""


class StorageError(TrialError):
    """The storage cannot be reached: the attempt is lost, and may go on elsewhere or later."""


class StoppedError(TrialError):
    """A trial ends because it was asked to; it can go on where it is."""


class NonFiniteLossError(TrialError):
    """The loss or a gradient is not finite; raised before the update is applied."""
