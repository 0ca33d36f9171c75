"""A tracker in a thread: what it is told arrives in order, once, whatever the store does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chip_core.errors import UserError
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.background import BackgroundTracker

PLAN: Any = SimpleNamespace(study=SimpleNamespace(name="small"))
QUICK = {
    "begin_within": 5.0, "patience": 0.3, "first_pause": 0.01, "longest_pause": 0.02,
    "follow_every": 1000.0,
}  # fmt: skip


@dataclass
class Store:
    """A tracker whose store is as the test wants it."""

    shown: list[str] = field(default_factory=list)
    trouble: Exception | None = None
    hangs: threading.Event | None = None  # what it waits for
    tries: int = 0
    refreshed: int = 0
    address: str = "there"

    @property
    def answers(self) -> int:
        return len(self.shown)

    def _take(self, what: str) -> None:
        self.tries += 1
        if self.hangs is not None:
            self.hangs.wait(10)
        if self.trouble is not None:
            raise self.trouble
        self.shown.append(what)

    def open(self, plan: Any, done: Sequence[Any], began: float | None = None) -> None:
        self._take("open")

    def follow(self) -> None:
        self._take("follow")

    def show(self, view: Any) -> None:
        did = "start" if view.status == "RUNNING" else "end"
        self._take(f"{did} {view.trial.name}")

    def close(
        self, arms: Any, status: Any, report: Path | None, ended: float | None = None
    ) -> None:
        self._take(f"close {status}")

    def check(self) -> None:
        self._take("check")

    def waiting(self) -> None:
        return None

    def refused(self) -> dict[str, str]:
        return {}

    def compare_address(self) -> str:
        return "compare"

    def refresh(self) -> None:
        self.refreshed += 1


def view(name: str, status: str = "FINISHED") -> Any:
    return SimpleNamespace(trial=SimpleNamespace(name=name), status=status)


def run_through(tracker: BackgroundTracker, names: Sequence[str] = ("a", "b")) -> None:
    for name in names:
        tracker.show(view(name, "RUNNING"))
        tracker.show(view(name))


ALL = ["open", "start a", "end a", "start b", "end b", "close FINISHED"]


def test_everything_arrives_in_order_and_is_there_after_the_end() -> None:
    store = Store()
    tracker = BackgroundTracker(store, **QUICK)
    tracker.open(PLAN, [])
    run_through(tracker)
    tracker.close([], "FINISHED", None)
    assert store.shown == ALL
    assert tracker.waiting() is None
    assert tracker.compare_address() == "compare"
    assert store.refreshed == 0


def test_a_store_that_is_away_at_the_start_and_comes_back_misses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(trouble=StoreUnavailable("nobody there"))
    tracker = BackgroundTracker(store, **QUICK)
    tracker.open(PLAN, [])
    run_through(tracker)
    _until(lambda: store.tries > 3)
    store.trouble = None
    tracker.close([], "FINISHED", None)
    assert store.shown == ALL
    assert tracker.waiting() is None
    assert store.refreshed > 0  # a call that got no answer may have been heard
    told = [record.message for record in caplog.records]
    assert len(told) == 1  # once, however often it was tried
    assert "nobody there; the study goes on" in told[0]


def test_a_store_that_stays_away_costs_nothing_and_what_waits_is_named() -> None:
    store = Store()
    tracker = BackgroundTracker(store, **QUICK)
    tracker.open(PLAN, [])
    tracker.show(view("a", "RUNNING"))
    tracker.show(view("a"))
    _until(lambda: store.shown == ALL[:3])
    store.trouble = StoreUnavailable("nobody there")
    began = time.monotonic()
    run_through(tracker, ["b"])
    assert time.monotonic() - began < 0.2
    tracker.close([], "FINISHED", None)
    waiting = tracker.waiting()
    assert waiting is not None
    assert (waiting.trials, waiting.reason) == (("b",), "nobody there")
    assert tracker.compare_address() is None


def test_a_store_that_hangs_holds_up_nobody_but_the_end_for_a_while() -> None:
    released = threading.Event()
    store = Store(hangs=released)
    tracker = BackgroundTracker(store, **{**QUICK, "begin_within": 0.05})
    began = time.monotonic()
    tracker.open(PLAN, [view("done before")])
    run_through(tracker)
    assert time.monotonic() - began < 2  # 0.05 s for the first answer, on a busy machine
    tracker.close([], "FINISHED", None)
    assert time.monotonic() - began < 4  # and 0.3 s of patience
    waiting = tracker.waiting()
    assert waiting is not None
    assert waiting.trials == ("done before", "a", "b")
    assert "does not answer" in waiting.reason
    released.set()


def test_a_store_that_is_slow_but_answers_is_waited_for() -> None:
    class Slow(Store):
        def _take(self, what: str) -> None:
            time.sleep(0.15)  # of a patience of 0.3 s an answer; six answers take 0.9 s
            super()._take(what)

    store = Slow()
    tracker = BackgroundTracker(store, **{**QUICK, "patience": 2.0})
    tracker.open(PLAN, [])
    run_through(tracker)
    tracker.close([], "FINISHED", None)
    assert store.shown == ALL


def test_an_address_that_is_wrong_is_told_at_once() -> None:
    tracker = BackgroundTracker(Store(trouble=UserError("mend it")), **QUICK)
    with pytest.raises(UserError, match="mend it"):
        tracker.open(PLAN, [])


def test_what_goes_wrong_later_ends_no_study() -> None:
    store = Store()
    tracker = BackgroundTracker(store, **QUICK)
    tracker.open(PLAN, [])
    store.trouble = RuntimeError("a mistake of ours")
    run_through(tracker)
    tracker.close([], "FINISHED", None)
    waiting = tracker.waiting()
    assert waiting is not None
    assert waiting.reason == "a mistake of ours"


def test_a_check_tells_what_is_wrong_and_waits_for_nobody() -> None:
    BackgroundTracker(Store()).check()
    BackgroundTracker(Store(trouble=StoreUnavailable("nobody there"))).check()
    with pytest.raises(UserError, match="mend it"):
        BackgroundTracker(Store(trouble=UserError("mend it"))).check()
    released = threading.Event()
    began = time.monotonic()
    BackgroundTracker(Store(hangs=released), begin_within=0.05).check()
    assert time.monotonic() - began < 2
    released.set()


def test_curves_are_followed_while_nothing_else_changes() -> None:
    store = Store()
    tracker = BackgroundTracker(store, **{**QUICK, "follow_every": 0.01})
    tracker.open(PLAN, [])
    _until(lambda: store.shown.count("follow") > 2)
    tracker.close([], "FINISHED", None)
    assert set(store.shown) == {"open", "follow", "close FINISHED"}
    assert not tracker._thread.join(10) and not tracker._thread.is_alive()


def _until(holds: Callable[[], bool]) -> None:
    due = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < due
        time.sleep(0.005)
