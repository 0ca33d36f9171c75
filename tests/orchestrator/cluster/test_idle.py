"""A head stops once nothing was there for long enough, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.idle import POLL_INTERVAL, Activity, stop_when_idle

IDLE = Activity(jobs=0, machines=0, users=0)


class Clock:
    """Time that passes by sleeping alone, and what is seen at each look."""

    def __init__(self, seen: list[Activity | Exception]) -> None:
        self.seen, self.time, self.looks = seen, 0.0, 0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def look(self) -> Activity:
        found = self.seen[min(self.looks, len(self.seen) - 1)]
        self.looks += 1
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.parametrize(
    ("seen", "looks"),
    [
        ([IDLE], 4),  # 120 s in looks of 30 s
        ([IDLE, IDLE, Activity(jobs=1, machines=0, users=0), IDLE], 3 + 4),
        ([Activity(jobs=0, machines=1, users=0)] * 5 + [IDLE], 5 + 4),
        ([Activity(jobs=0, machines=0, users=1), IDLE], 1 + 4),
        ([ConnectionError("Ray is gone")], 4),
    ],
)
def test_it_stops_after_the_time_without_a_break(
    seen: list[Activity | Exception], looks: int, tmp_path: Path
) -> None:
    clock = Clock(seen)
    mark = tmp_path / "stopped"
    stop_when_idle(
        4 * POLL_INTERVAL, f"touch {mark}", query=clock.look, sleep=clock.sleep, now=clock.now
    )
    assert clock.looks == looks
    assert mark.exists()
