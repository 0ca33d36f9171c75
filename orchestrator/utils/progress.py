"""Show the progress of a command that takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOW_AFTER_SECONDS = 2.0  # seconds
PLAIN_INTERVAL = 10.0  # seconds between lines without a terminal


class ProgressCallback(Protocol):
    """Reports progress."""

    def __call__(self, done: int, of: int = 0) -> None:
        """Report how many are done, and the total if it was not known before."""


@contextmanager
def track_progress(
    console: Console, description: str, total: int = 0
) -> Iterator[ProgressCallback]:
    """Yield a function to call with the number done: shows a bar on a terminal, lines elsewhere.

    Args:
        console: where it is shown.
        description: what is counted.
        total: the total; 0 if each call gives it.
    """
    start_time = time.monotonic()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(description, total=total)
    last_report, bar_started = start_time, False

    def step(done: int, of: int = 0) -> None:
        nonlocal last_report, bar_started, total
        total = of or total
        now = time.monotonic()
        if now - start_time < SHOW_AFTER_SECONDS or done >= total:
            return
        if console.is_terminal:
            if not bar_started:
                bar.start()
                bar_started = True
            bar.update(task, completed=done, total=total)
        elif now - last_report >= (
            PLAIN_INTERVAL if last_report > start_time else SHOW_AFTER_SECONDS
        ):
            last_report = now
            remaining = (now - start_time) / max(done, 1) * (total - done)
            console.print(
                f"{description}: {done} of {total}, {remaining:.0f} s left", highlight=False
            )

    try:
        yield step
    finally:
        if bar_started:
            bar.stop()
