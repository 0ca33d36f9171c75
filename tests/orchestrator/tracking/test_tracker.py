"""A tracker in a thread: what it is told arrives in order, once, whatever the store does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from chip_core.utils.errors import UserError
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.projection import MlflowProjection
from orchestrator.tracking.tracker import Tracker

from .conftest import wait_until

PLAN: Any = SimpleNamespace(study=SimpleNamespace(name="small"))
QUICK = {
    "begin_within": 5.0, "patience": 0.3, "first_pause": 0.01, "longest_pause": 0.02,
    "follow_every": 1000.0,
}  # fmt: skip


class StubProjection:
    """A tracker whose store is as the test wants it; notes what is new each time."""

    def __init__(
        self, trouble: Exception | None = None, hangs: threading.Event | None = None
    ) -> None:
        self.trouble, self.hangs = trouble, hangs  # what it waits for
        self.taken: list[str] = []
        self._shown: dict[Any, Any] = {}
        self.tries = self.completed_requests = self.followed = 0
        self.address, self.plan = "there", None
        self.store = self

    def _take(self, what: str) -> None:
        self.tries += 1
        if self.hangs is not None:
            self.hangs.wait(10)
        if self.trouble is not None:
            raise self.trouble
        self.taken.append(what)
        self.completed_requests += 1

    def reconcile(self, study: Any) -> None:
        self.followed += 1
        if self.plan is not study.plan:
            self._take("open")
            self.plan = study.plan
        for key, view in study.trials.items():
            if self._shown.get(key) is not view:
                self._take(f"{view.status} {view.trial.name}")
                self._shown[key] = view
        for end in study.ends:
            self._take(f"close {end.status}")

    def check(self) -> None:
        self._take("check")

    _failures: ClassVar[dict[str, str]] = {}
    refused: ClassVar[dict[str, str]] = {}
    state = MlflowProjection.state

    def _compare_address(self) -> str:
        return "compare"


def make_tracker(store: Any, **settings: float) -> Tracker:
    tracker = Tracker(store)
    for name, seconds in {**QUICK, **settings}.items():
        assert hasattr(Tracker, name)
        setattr(tracker, name, seconds)
    return tracker


def make_view(name: str, status: str = "FINISHED") -> Any:
    return SimpleNamespace(trial=SimpleNamespace(name=name), status=status, key=name)


def show_trials(tracker: Tracker, names: Sequence[str] = ("a", "b")) -> None:
    for name in names:
        tracker.show(make_view(name, "RUNNING"))
        tracker.show(make_view(name))


#: A trial that has ended by the time it is shown is not shown as running.
ALL = ["open", "FINISHED a", "FINISHED b", "close FINISHED"]


def test_everything_arrives_in_order_and_is_there_after_the_end() -> None:
    store = StubProjection()
    tracker = make_tracker(store)
    tracker.open(PLAN, [])
    show_trials(tracker)
    tracker.close([], "FINISHED", None)
    assert _list_endings(store.taken) == ALL
    assert tracker.state().pending is None
    assert tracker.state().compare == "compare"


def test_a_store_that_is_away_at_the_start_and_comes_back_misses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = StubProjection(trouble=StoreUnavailable("nobody there"))
    tracker = make_tracker(store)
    tracker.open(PLAN, [])
    show_trials(tracker)
    wait_until(lambda: store.tries > 3)
    store.trouble = None
    tracker.close([], "FINISHED", None)
    assert _list_endings(store.taken) == ALL
    assert tracker.state().pending is None
    told = [record.message for record in caplog.records]
    assert len(told) == 1  # once, however often it was tried
    assert "nobody there; the study continues" in told[0]


def test_a_store_that_stays_away_costs_nothing_and_what_waits_is_named() -> None:
    store = StubProjection()
    tracker = make_tracker(store)
    tracker.open(PLAN, [])
    tracker.show(make_view("a", "RUNNING"))
    tracker.show(make_view("a"))
    wait_until(lambda: _list_endings(store.taken) == ALL[:2])
    store.trouble = StoreUnavailable("nobody there")
    began = time.monotonic()
    show_trials(tracker, ["b"])
    assert time.monotonic() - began < 0.2
    tracker.close([], "FINISHED", None)
    waiting = tracker.state().pending
    assert waiting is not None
    assert (waiting.trials, waiting.reason) == (("b",), "nobody there")
    assert tracker.state().compare is None


def test_a_store_that_hangs_holds_up_nobody_but_the_end_for_a_while() -> None:
    released = threading.Event()
    store = StubProjection(hangs=released)
    tracker = make_tracker(store, begin_within=0.05)
    began = time.monotonic()
    tracker.open(PLAN, [make_view("done before")])
    tracker.confirm()
    show_trials(tracker)
    assert time.monotonic() - began < 2  # 0.05 s for the first answer, on a busy machine
    tracker.close([], "FINISHED", None)
    assert time.monotonic() - began < 4  # and 0.3 s of patience
    waiting = tracker.state().pending
    assert waiting is not None
    assert waiting.trials == ("done before", "a", "b")
    assert "does not answer" in waiting.reason
    released.set()


def test_a_store_that_is_slow_but_answers_is_waited_for() -> None:
    class Slow(StubProjection):
        def _take(self, what: str) -> None:
            time.sleep(0.15)  # of a patience of 0.3 s an answer; six answers take 0.9 s
            super()._take(what)

    store = Slow()
    tracker = make_tracker(store, patience=2.0)
    tracker.open(PLAN, [])
    show_trials(tracker)
    tracker.close([], "FINISHED", None)
    assert _list_endings(store.taken) == ALL


def test_an_address_that_is_wrong_is_told_before_anything_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = make_tracker(StubProjection(trouble=UserError("fix it")), patience=60.0)
    tracker.open(PLAN, [])
    with pytest.raises(UserError, match="fix it"):
        tracker.confirm()
    began = time.monotonic()
    tracker.close([], "FAILED", None)
    assert time.monotonic() - began < 10  # nobody is left who could answer within the patience
    assert not caplog.records  # it is raised, and not told beside


def test_a_store_opens_while_something_else_starts() -> None:
    released = threading.Event()
    store = StubProjection(hangs=released)
    tracker = make_tracker(store, begin_within=60.0)
    began = time.monotonic()
    tracker.open(PLAN, [])
    assert time.monotonic() - began < 5
    assert store.taken == []
    released.set()
    tracker.confirm()
    assert store.taken == ["open"]
    tracker.close([], "FINISHED", None)


def test_what_goes_wrong_later_ends_no_study() -> None:
    store = StubProjection()
    tracker = make_tracker(store)
    tracker.open(PLAN, [])
    store.trouble = RuntimeError("a mistake of ours")
    show_trials(tracker)
    tracker.close([], "FINISHED", None)
    waiting = tracker.state().pending
    assert waiting is not None
    assert waiting.reason == "a mistake of ours"


def test_a_check_tells_what_is_wrong_and_waits_for_nobody() -> None:
    Tracker(StubProjection()).check()
    Tracker(StubProjection(trouble=StoreUnavailable("nobody there"))).check()
    with pytest.raises(UserError, match="fix it"):
        Tracker(StubProjection(trouble=UserError("fix it"))).check()
    released = threading.Event()
    began = time.monotonic()
    make_tracker(StubProjection(hangs=released), begin_within=0.05).check()
    assert time.monotonic() - began < 2
    released.set()


def test_curves_are_followed_while_nothing_else_changes() -> None:
    store = StubProjection()
    tracker = make_tracker(store, follow_every=0.01)
    tracker.open(PLAN, [])
    wait_until(lambda: store.followed > 3)
    tracker.close([], "FINISHED", None)
    assert store.taken == ["open", "close FINISHED"]
    assert not tracker._thread.join(10) and not tracker._thread.is_alive()


def _list_endings(shown: Sequence[str]) -> list[str]:
    return [what for what in shown if not what.startswith("RUNNING")]
