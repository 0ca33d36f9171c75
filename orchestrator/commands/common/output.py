"""Print only valid JSON on standard output; progress goes to standard error."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from chip_core.results import Progress


F = TypeVar("F", bound=Callable[..., Any])

#: Where JSON goes while other output is redirected; None: it is not.
_RESULTS_STREAM: ContextVar[TextIO | None] = ContextVar("results", default=None)
_STDOUT_FD, _STDERR_FD = 1, 2  # a process's descriptors

#: Key of the list of numbers that are not valid JSON and were replaced by null.
NOT_FINITE_KEY = "not_finite"


def json_option(text: str = "Print results as JSON.") -> Callable[[F], F]:
    """Add `--json` to a command. With it, all other output goes to standard error."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_clear_output(*args: Any, as_json: bool, **options: Any) -> Any:
            if not as_json:
                return command(*args, as_json=False, **options)
            with _redirect_output():
                return command(*args, as_json=True, **options)

        return cast(
            F, click.option("--json", "as_json", is_flag=True, help=text)(with_clear_output)
        )

    return decorate


def print_json(value: dict[str, Any]) -> None:
    """Print results as JSON. Numbers that are not finite become null, named under `not_finite`."""
    not_finite: dict[str, str] = {}
    data = _replace_not_finite(value, "", not_finite)
    if not_finite:
        data[NOT_FINITE_KEY] = not_finite
    stream = _RESULTS_STREAM.get() or sys.stdout
    stream.write(json.dumps(data, allow_nan=False) + "\n")
    stream.flush()


def print_lines(
    lines: Iterable[RenderableType], console: Console | None = None, *, soft_wrap: bool = False
) -> None:
    """Print lines.

    Args:
        lines: the lines. A text with an address is never wrapped, so that it can be clicked or
            copied.
        console: where to print; None: standard output.
        soft_wrap: whether the terminal is to wrap all lines.
    """
    from rich.console import Console
    from rich.text import Text

    target = console or Console()
    for line in lines:
        is_unwrapped = isinstance(line, Text) and bool(line.no_wrap)
        target.print(line, soft_wrap=soft_wrap or is_unwrapped)


def print_written(text: str, written: Iterable[Path], note: str | None) -> None:
    """Print a text, the files that were written, and what went wrong, if anything."""
    click.echo(text)
    for path in written:
        click.echo(f"written: {path}")
    if note is not None:
        click.echo(note)


def _replace_not_finite(value: Any, path: str, not_finite: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        not_finite[path] = str(value)
        return None
    if isinstance(value, dict):
        return {
            key: _replace_not_finite(entry, f"{path}.{key}" if path else str(key), not_finite)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            _replace_not_finite(entry, f"{path}[{index}]", not_finite)
            for index, entry in enumerate(value)
        ]
    return value


@contextmanager
def _redirect_output() -> Iterator[None]:
    """Redirect the output of Python, libraries and child processes to standard error."""
    original = sys.stdout
    original.flush()
    with redirect_stdout(sys.stderr), _redirect_stdout_fd(original) as results:
        token = _RESULTS_STREAM.set(results)
        try:
            yield
        finally:
            _RESULTS_STREAM.reset(token)
            sys.stderr.flush()
            results.flush()


@contextmanager
def _redirect_stdout_fd(stream: TextIO) -> Iterator[TextIO]:
    """Redirect the process's standard output to standard error; yield `stream`'s old target."""
    try:
        saved_fd = os.dup(_STDOUT_FD)
        os.dup2(_STDERR_FD, _STDOUT_FD)
    except OSError:  # one of the two is closed
        yield stream
        return
    try:
        if _stream_fd(stream) != _STDOUT_FD:
            yield stream  # a test's
            return
        with os.fdopen(os.dup(saved_fd), "w", encoding=stream.encoding) as results:
            yield results
    finally:
        os.dup2(saved_fd, _STDOUT_FD)
        os.close(saved_fd)


def _stream_fd(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (io.UnsupportedOperation, ValueError):
        return None


class ProgressPrinter:
    """Prints the progress regularly."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._printed_at = 0.0

    def __call__(self, progress: Progress) -> None:
        """Print the progress if ten seconds have passed or a phase has ended."""
        now = time.monotonic()
        if progress.done < progress.total and now - self._printed_at < 10:
            return
        self._printed_at = now
        text = f"{progress.phase} {progress.done}/{progress.total}"
        rate, left = (progress.figures.get(name) for name in ("items_per_second", "seconds_left"))
        if rate is not None and left is not None:
            text += f", {rate:.3g} a second, {left:.0f} s left"
        self._console.print(text, markup=False, highlight=False)
