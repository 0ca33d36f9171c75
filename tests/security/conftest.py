"""Says how many malformed inputs were refused."""

from __future__ import annotations

from typing import Any

from . import refusals


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts by kind."""
    if refusals.COUNTS:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(refusals.COUNTS.items()))
        terminalreporter.write_line(
            f"malformed inputs refused by one line each: {sum(refusals.COUNTS.values())} ({kinds})"
        )
