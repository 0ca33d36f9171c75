"""Map a function over many things in threads, in order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")

#: Values a thread that are taken before the first of them is asked for.
_AHEAD = 4


def map_values(
    function: Callable[[T], R], pairs: Iterable[tuple[K, T]], threads: int = 1
) -> Iterator[tuple[K, R]]:
    """Yield each key with what a function makes of its value.

    Args:
        function: one that lets other threads compute meanwhile, as Pillow's decoders do.
        pairs: taken in this thread.
        threads: how many make it; 1: this one alone.

    Raises:
        Exception: what the function raises, in its place.
    """
    if threads < 2:
        for key, value in pairs:
            yield key, function(value)
        return
    asked: deque[tuple[K, Future[R]]] = deque()
    # The threads set filters of warnings for a while, which are the process's: left as they were.
    with warnings.catch_warnings():
        pool = ThreadPoolExecutor(threads, thread_name_prefix="map")
        try:
            for key, value in pairs:
                asked.append((key, pool.submit(function, value)))
                if len(asked) == _AHEAD * threads:
                    first, made = asked.popleft()
                    yield first, made.result()
            while asked:
                first, made = asked.popleft()
                yield first, made.result()
        finally:
            pool.shutdown(cancel_futures=True)
