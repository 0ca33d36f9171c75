"""Stop a run: at once, after checkpoints, or when running trials have ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

#: What a run is stopped by: a user at the terminal, a machine that is being shut down.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_SAID = (
    "\nstopping: what runs writes a checkpoint and ends, nothing new is begun; "
    "once more stops now\n"
)


class Stop:
    """Whether a run is to end. Executors look at it; anything may ask for it."""

    def __init__(self) -> None:
        """Nobody asked yet."""
        self._asked = False
        self._limit: str | None = None
        self._why: str | None = None

    @property
    def asked(self) -> bool:
        """Whether running trials are to leave a checkpoint and end."""
        return self._asked

    @property
    def limit(self) -> str | None:
        """The limit that asked, where it was no person."""
        return self._limit

    @property
    def no_more(self) -> bool:
        """Whether nothing new is to begin; what runs goes on to its end, unless `asked`."""
        return self._why is not None or self._asked

    @property
    def why(self) -> str | None:
        """Why nothing new is to begin, where `drain` said so."""
        return self._why

    def ask(self, limit: str | None = None) -> None:
        """Let running trials leave a checkpoint and end, and begin nothing new.

        Args:
            limit: what was reached, where that asks; who asked first stays.
        """
        if not self._asked:
            self._limit = limit
        self._asked = True

    def drain(self, why: str) -> None:
        """Let running trials come to their end, and begin nothing new.

        Args:
            why: said at the end; the first one stays.
        """
        self._why = self._why or why

    @contextmanager
    def install_signal_handlers(self) -> Iterator[None]:
        """Take the first SIGINT or SIGTERM for a wish to stop; the second stops at once.

        Raises:
            KeyboardInterrupt: at the second one, wherever the main thread is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def hear(number: int, frame: FrameType | None) -> None:
            if self._asked:
                raise KeyboardInterrupt
            self.ask()
            os.write(2, _SAID.encode())  # print could be in the middle of printing

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
    """Give the caller's signal handlers back where what is done meanwhile replaces them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
