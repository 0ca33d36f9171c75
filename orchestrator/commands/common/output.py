"""Print only valid JSON on standard output; progress goes to the terminal."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

if TYPE_CHECKING:
    from chip_core.results import Progress


F = TypeVar("F", bound=Callable[..., Any])

#: Where JSON goes while other output is redirected; None: it is not.
_RESULTS: ContextVar[TextIO | None] = ContextVar("results", default=None)
_OUT, _ERROR = 1, 2  # a process's descriptors

#: Key of the list of numbers that are not valid JSON and were replaced by null.
NOT_FINITE = "not_finite"


def json_option(text: str = "Print results as JSON.") -> Callable[[F], F]:
    """Add `--json` to a command. With it, all other output goes to standard error."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def cleared(*args: Any, as_json: bool, **options: Any) -> Any:
            if not as_json:
                return command(*args, as_json=False, **options)
            with _clear_output():
                return command(*args, as_json=True, **options)

        return cast(F, click.option("--json", "as_json", is_flag=True, help=text)(cleared))

    return decorate


def print_json(value: dict[str, Any]) -> None:
    """Print results as JSON. Numbers that are not finite become null, named under `not_finite`."""
    odd: dict[str, str] = {}
    plain = _finite(value, "", odd)
    if odd:
        plain[NOT_FINITE] = odd
    stream = _RESULTS.get() or sys.stdout
    stream.write(json.dumps(plain, allow_nan=False) + "\n")
    stream.flush()


def _finite(value: Any, path: str, odd: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        odd[path] = str(value)
        return None
    if isinstance(value, dict):
        return {
            key: _finite(below, f"{path}.{key}" if path else str(key), odd)
            for key, below in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_finite(below, f"{path}[{place}]", odd) for place, below in enumerate(value)]
    return value


@contextmanager
def _clear_output() -> Iterator[None]:
    """Redirect the output of Python, libraries and child processes to standard error."""
    own = sys.stdout
    own.flush()
    with redirect_stdout(sys.stderr), _descriptor_of(own) as results:
        token = _RESULTS.set(results)
        try:
            yield
        finally:
            _RESULTS.reset(token)
            sys.stderr.flush()
            results.flush()


@contextmanager
def _descriptor_of(stream: TextIO) -> Iterator[TextIO]:
    """Redirect the process's standard output to standard error; yield `stream`'s old target."""
    try:
        kept = os.dup(_OUT)
        os.dup2(_ERROR, _OUT)
    except OSError:  # one of the two is closed
        yield stream
        return
    try:
        if _descriptor(stream) != _OUT:
            yield stream  # a test's
            return
        with os.fdopen(os.dup(kept), "w", encoding=stream.encoding) as results:
            yield results
    finally:
        os.dup2(kept, _OUT)
        os.close(kept)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (io.UnsupportedOperation, ValueError):
        return None


class Told:
    """Prints the progress regularly."""

    def __init__(self, console: Any) -> None:
        self._console = console
        self._told = 0.0

    def __call__(self, progress: Progress) -> None:
        """Print the progress if ten seconds have passed or a phase has ended."""
        now = time.monotonic()
        if progress.done < progress.total and now - self._told < 10:
            return
        self._told = now
        text = f"{progress.phase} {progress.done}/{progress.total}"
        rate, left = (progress.figures.get(name) for name in ("items_per_second", "seconds_left"))
        if rate is not None and left is not None:
            text += f", {rate:.3g} a second, {left:.0f} s left"
        self._console.print(text, markup=False, highlight=False)
