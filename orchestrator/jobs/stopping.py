"""Stop a run: at once, after checkpoints, or when running trials have ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: The signals that stop a run: from a user at the terminal, or a machine that shuts down.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_SAID = (
    "\nstopping: what runs writes a checkpoint and ends, nothing new is begun; "
    "once more stops now\n"
)


class Stop:
    """A request to stop a run. Executors check it, and any part of a run can make it."""

    def __init__(self) -> None:
        """Create it without a request."""
        self._asked = False
        self._limit: str | None = None
        self._why: str | None = None

    @property
    def asked(self) -> bool:
        """Whether running trials should write a checkpoint and end."""
        return self._asked

    @property
    def limit(self) -> str | None:
        """The limit that made the request, if it was not a person."""
        return self._limit

    @property
    def no_more(self) -> bool:
        """Whether no new job should start. Running ones continue to their end, unless `asked`."""
        return self._why is not None or self._asked

    @property
    def why(self) -> str | None:
        """Why no new job should start, if `drain` was called."""
        return self._why

    def ask(self, limit: str | None = None) -> None:
        """Request that running trials write a checkpoint and end, and that no new one starts.

        Args:
            limit: the limit that was reached, if it is the reason; the first request counts.
        """
        if not self._asked:
            self._limit = limit
        self._asked = True

    def drain(self, why: str) -> None:
        """Request that no new trial starts, while running ones continue to their end.

        Args:
            why: reason to print at the end; the first one counts.
        """
        self._why = self._why or why

    @contextmanager
    def install_signal_handlers(self) -> Iterator[None]:
        """Treat the first SIGINT or SIGTERM as a stop request; the second stops at once.

        Raises:
            KeyboardInterrupt: at the second signal, wherever the main thread is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def hear(number: int, frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self.ask()
            os.write(2, _SAID.encode())  # print is not reentrant

        before: dict[signal.Signals, Callable[..., object] | int | None] = {}
        try:
            for one in SIGNALS:
                before[one] = signal.signal(one, hear)
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


@contextmanager
def signals_kept() -> Iterator[None]:
    """Restore the caller's signal handlers at the end, if the body replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
