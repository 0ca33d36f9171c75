"""Map a function over many things in processes beside this one, in order.

The processes read what they are to do from their input and end with it: however this one ends, none
of them stays.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import cycle, islice
from typing import IO, Any, Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 32  # values that are sent together
_PROGRAM = "from chip_core.utils.processes import serve; serve()"


def map_values(
    function: Callable[[T], R], pairs: Iterable[tuple[K, T]], processes: int = 1
) -> Iterator[tuple[K, R]]:
    """Yield each key with what a function makes of its value.

    Args:
        function: one of a module, which raises nothing.
        pairs: keys stay here, values are sent.
        processes: how many make it; 1: this one alone.
    """
    if processes < 2:
        for key, value in pairs:
            yield key, function(value)
        return
    workers = [_Worker(function) for _ in range(processes)]
    asked: deque[tuple[_Worker[T, R], list[K]]] = deque()
    try:
        for worker, chunk in zip(cycle(workers), _chunks(pairs), strict=False):
            if len(asked) == processes:  # the worker whose turn it is was asked first
                yield from _answered(*asked.popleft())
            worker.ask([value for _, value in chunk])
            asked.append((worker, [key for key, _ in chunk]))
        while asked:
            yield from _answered(*asked.popleft())
    finally:
        for worker in workers:
            worker.end()


def serve() -> None:
    """Answer what stands on the standard input, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked decides
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    module, name = pickle.load(asked)
    function = getattr(import_module(module), name)
    while True:
        try:
            values = pickle.load(asked)
        except EOFError:
            return
        pickle.dump([function(value) for value in values], answers)
        answers.flush()


def _chunks(pairs: Iterable[tuple[K, T]]) -> Iterator[list[tuple[K, T]]]:
    left = iter(pairs)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk


def _answered(worker: _Worker[T, R], keys: list[K]) -> Iterator[tuple[K, R]]:
    return zip(keys, worker.answers(), strict=True)


class _Worker(Generic[T, R]):
    """A process that makes values one chunk at a time; what it cannot, this one makes."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self._function, self._asked = function, list[T]()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._send((function.__module__, function.__qualname__))

    def ask(self, values: list[T]) -> None:
        self._asked = values
        self._send(values)

    def answers(self) -> list[R]:
        try:
            made: list[R] = pickle.load(_there(self._process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):  # it was ended
            return [self._function(value) for value in self._asked]
        return made

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _send(self, value: Any) -> None:
        stream = _there(self._process.stdin)
        with suppress(OSError):  # it was ended: `answers` sees that
            pickle.dump(value, stream)
            stream.flush()


def _there(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
