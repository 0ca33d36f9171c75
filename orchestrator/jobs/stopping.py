"""Stop a run: at once, after checkpoints, or when running trials have ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: The signals that stop a run: from a user at the terminal, or a machine that shuts down.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_STOP_MESSAGE = (
    "\n"
    "stopping: running trials write a checkpoint and end, and no new ones start; interrupt again "
    "to stop now\n"
)


class StopRequest:
    """A request to stop a run. Executors check it, and any part of a run can make it."""

    def __init__(self) -> None:
        """Create it without a request."""
        self._is_requested = False
        self._limit: str | None = None
        self._drain_reason: str | None = None

    @property
    def is_requested(self) -> bool:
        """Whether running trials should write a checkpoint and end."""
        return self._is_requested

    @property
    def limit(self) -> str | None:
        """The limit that made the request, if it was not a person."""
        return self._limit

    @property
    def is_draining(self) -> bool:
        """Whether no new job should start. Running ones continue, unless `is_requested`."""
        return self._drain_reason is not None or self._is_requested

    @property
    def drain_reason(self) -> str | None:
        """Why no new job should start, if `drain` was called."""
        return self._drain_reason

    def request(self, limit: str | None = None) -> None:
        """Request that running trials write a checkpoint and end, and that no new one starts.

        Args:
            limit: the limit that was reached, if it is the reason; the first request counts.
        """
        if not self._is_requested:
            self._limit = limit
        self._is_requested = True

    def drain(self, reason: str) -> None:
        """Request that no new trial starts, while running ones continue to their end.

        Args:
            reason: reason to print at the end; the first one counts.
        """
        self._drain_reason = self._drain_reason or reason

    @contextmanager
    def install_signal_handlers(self) -> Iterator[None]:
        """Treat the first SIGINT or SIGTERM as a stop request; the second stops at once.

        Raises:
            KeyboardInterrupt: at the second signal, wherever the main thread is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle_signal(number: int, frame: FrameType | None) -> None:
            if self._is_requested:
                raise KeyboardInterrupt
            self.request()
            os.write(2, _STOP_MESSAGE.encode())  # print is not reentrant

        previous_handlers: dict[signal.Signals, Callable[..., object] | int | None] = {}
        try:
            for number in STOP_SIGNALS:
                previous_handlers[number] = signal.signal(number, handle_signal)
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


@contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Restore the caller's signal handlers at the end, if the body replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
