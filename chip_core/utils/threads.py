"""Map a function over many values in threads, in order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")

#: Values per thread that are read ahead.
_QUEUE_PER_THREAD = 4


def map_values(
    function: Callable[[T], R], pairs: Iterable[tuple[K, T]], threads: int = 1
) -> Iterator[tuple[K, R]]:
    """Yield each key with the function's result for its value.

    Args:
        function: one that releases the GIL, as Pillow's decoders do.
        pairs: read in this thread.
        threads: how many run it; 1: only this one.

    Raises:
        Exception: what the function raises, at its place in the order.
    """
    if threads < 2:
        for key, value in pairs:
            yield key, function(value)
        return
    pending: deque[tuple[K, Future[R]]] = deque()
    # Functions in the threads may set warning filters, which are global: restore them at the end.
    with warnings.catch_warnings():
        pool = ThreadPoolExecutor(threads, thread_name_prefix="map")
        try:
            for key, value in pairs:
                pending.append((key, pool.submit(function, value)))
                if len(pending) == _QUEUE_PER_THREAD * threads:
                    done_key, future = pending.popleft()
                    yield done_key, future.result()
            while pending:
                done_key, future = pending.popleft()
                yield done_key, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
