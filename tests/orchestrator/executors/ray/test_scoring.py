"""How many processes score: another one starts where those that are there do not keep up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from orchestrator.executors.ray import scoring
from orchestrator.executors.ray.scoring import ScoringPool


class SilentActor:
    """Takes every job, and is never heard of."""

    def __init__(self) -> None:
        self.run = SimpleNamespace(options=lambda **given: SimpleNamespace(remote=lambda job: job))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(scoring, "time", clock)
    monkeypatch.setattr(scoring, "cpu_count", lambda: 2)
    monkeypatch.setattr(scoring, "_create_actor", SilentActor)
    monkeypatch.setattr(ScoringPool, "_process_reports", lambda self, each: None)
    stop = SimpleNamespace(is_requested=False)
    monitor: Any = SimpleNamespace(on_start=lambda job: None, stop=stop)
    made = ScoringPool(monitor, payload=lambda job: job)
    made.clock = clock  # type: ignore[attr-defined]
    return made


def list_running(pool: Any, now: float) -> list[str]:
    pool.clock.now = now
    pool.poll()
    return [each.job for each in pool._running]


def test_another_starts_after_some_seconds_and_never_more_than_there_are_cores(pool: Any) -> None:
    for job in "abcd":
        pool.submit(job)
    assert list_running(pool, 0.0) == ["a"]
    assert list_running(pool, scoring._SCALE_UP_SECONDS - 0.1) == ["a"]
    assert list_running(pool, scoring._SCALE_UP_SECONDS + 0.1) == ["a", "b"]
    assert list_running(pool, 100.0) == ["a", "b"]


def test_one_that_is_done_takes_the_next_job_at_once(pool: Any) -> None:
    for job in "ab":
        pool.submit(job)
    assert list_running(pool, 0.0) == ["a"]
    pool._idle.append(pool._running.pop().actor)
    assert list_running(pool, 0.5) == ["b"]


def test_where_none_runs_one_starts_at_once(pool: Any) -> None:
    pool.submit("a")
    assert list_running(pool, 0.0) == ["a"]
    pool._running.clear()  # its process died
    pool.submit("b")
    assert list_running(pool, 0.1) == ["b"]
