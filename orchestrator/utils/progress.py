"""Show the progress of a command that takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN_AFTER = 2.0  # seconds
PLAIN_EVERY = 10.0  # seconds between lines without a terminal


class Step(Protocol):
    """Reports progress."""

    def __call__(self, done: int, of: int = 0) -> None:
        """Report how many are done, and the total if it was not known before."""


@contextmanager
def progress(console: Console, what: str, total: int = 0) -> Iterator[Step]:
    """Yield a function to call with the number done: shows a bar on a terminal, lines elsewhere.

    Args:
        console: where it is shown.
        what: what is counted.
        total: the total; 0 if each call gives it.
    """
    began = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(what, total=total)
    told, started = began, False

    def step(done: int, of: int = 0) -> None:
        nonlocal told, started, total
        total = of or total
        now = time.monotonic()
        if now - began < SHOWN_AFTER or done >= total:
            return
        if console.is_terminal:
            if not started:
                bar.start()
                started = True
            bar.update(task, completed=done, total=total)
        elif now - told >= (PLAIN_EVERY if told > began else SHOWN_AFTER):
            told = now
            left = (now - began) / max(done, 1) * (total - done)
            console.print(f"{what}: {done} of {total}, {left:.0f} s left", highlight=False)

    try:
        yield step
    finally:
        if started:
            bar.stop()
