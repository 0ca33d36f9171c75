"""A tracker in a thread of its own: whatever its store does, nobody who trains waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.plan import Plan
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.base import ArmView, Status, TrialView, Waiting
from orchestrator.tracking.projection import MlflowTracker

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """Something that the tracker is to show; it is asked for it until it is done."""

    make: Callable[[], None]
    trials: tuple[str, ...] = ()  # whose end it shows


class BackgroundTracker:
    """Brings a store up to date in a thread, change by change; what cannot be shown waits.

    Nothing here blocks but `check` and `open`, for the first few seconds, and `close`, as long as
    the store answers. A store that is away is said once, in a line, and asked again at growing
    intervals.
    """

    def __init__(
        self,
        tracker: MlflowTracker,
        *,
        begin_within: float = 30.0,
        patience: float = 45.0,
        first_pause: float = 2.0,
        longest_pause: float = 60.0,
        follow_every: float = 3.0,
    ) -> None:
        """Nothing is asked yet.

        Args:
            tracker: what is asked.
            begin_within: seconds that `check` and `open` wait for the store to say what is wrong.
            patience: seconds that `close` waits for an answer of a store that does not give one.
            first_pause: seconds until a store that is away is asked again; then twice as many,
            longest_pause: up to so many.
            follow_every: seconds between two looks at the curves of running trials.
        """
        self.address = tracker.address
        self._tracker, self._follow_every = tracker, follow_every
        self._begin_within, self._patience = begin_within, patience
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._changed = threading.Condition()
        self._queue: deque[_Change] = deque()
        self._trouble: Exception | None = None  # of what was asked last
        self._asked = 0  # how often something was tried
        self._busy = self._opened = self._hurry = self._stopped = False
        self._awaited = False  # whether somebody waits for an answer, and raises what is wrong
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made.

        Raises:
            UserError: the store is not away but wrong: the address is to be mended.
        """
        self._begin(_Change(make=self._tracker.check))

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Begin to show a study, or go on with more of it.

        Raises:
            UserError: at the beginning: the store is not away but wrong.
        """
        names = tuple(view.trial.name for view in done)
        make = partial(self._tracker.open, plan, list(done), began)
        begin = self._add if self._opened else self._begin
        begin(_Change(make=make, trials=names))
        self._opened = True

    def show(self, view: TrialView) -> None:
        """Show a trial as running, or as ended."""
        ended = () if view.status == "RUNNING" else (view.trial.name,)
        self._add(_Change(make=partial(self._tracker.show, view), trials=ended))

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """Show the end, and wait until everything is shown or the store is known to be away."""
        self._add(_Change(make=partial(self._tracker.close, list(arms), status, report, ended)))
        with self._changed:
            self._hurry = True
            once_more, answers = self._asked + self._busy + 1, self._tracker.answers
            due = time.monotonic() + self._patience
            while self._queue and time.monotonic() < due:
                self._changed.wait(1.0)
                if self._trouble is not None and self._asked >= once_more:
                    break
                if self._tracker.answers > answers:
                    answers, due = self._tracker.answers, time.monotonic() + self._patience
            self._stopped = True
            self._changed.notify_all()

    def waiting(self) -> Waiting | None:
        """Return what could not be shown."""
        with self._changed:
            left_out = self._tracker.waiting()
            if not self._queue:
                return left_out
            away = f"the MLflow store {self.address} does not answer"
            names = [name for change in self._queue for name in change.trials]
            if left_out is not None:
                names, away = [*left_out.trials, *names], left_out.reason
            return Waiting(reason=str(self._trouble or away), trials=tuple(dict.fromkeys(names)))

    def refused(self) -> Mapping[str, str]:
        """Return what the store takes in no way, and why."""
        return self._tracker.refused()

    def compare_address(self) -> str | None:
        """Return MLflow's compare page of the arms; None where there is none yet."""
        return None if self.waiting() is not None else self._tracker.compare_address()

    def _begin(self, change: _Change) -> None:
        """Ask for something, and wait a while for whether the store can be used at all."""
        with self._changed:
            asked, self._awaited = self._asked + self._busy, True
            self._add(change)
            if not self._changed.wait_for(lambda: self._asked > asked, self._begin_within):
                _LOG.warning(
                    "the MLflow store %s has not answered in %.0f s; the study goes on, and its "
                    "runs are shown when it does",
                    self.address,
                    self._begin_within,
                )
            self._awaited = False
            if self._trouble is not None and _is_wrong(self._trouble):
                self._stopped = True
                self._changed.notify_all()
                raise self._trouble

    def _add(self, change: _Change) -> None:
        with self._changed:
            self._queue.append(change)
            self._changed.notify_all()
            if not self._thread.is_alive() and not self._stopped:
                self._thread.start()

    def _work(self) -> None:
        """Show what has changed, in order, until it is stopped."""
        pause = self._first_pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._queue, self._follow_every)
                if self._stopped:
                    return
                change = self._queue[0] if self._queue else _Change(make=self._tracker.follow)
                before, self._busy = self._trouble, True
            error = None
            try:
                if before is not None:
                    self._tracker.refresh()
                change.make()
            except Exception as raised:  # shown to people: nothing that goes wrong ends a study
                error = raised
            with self._changed:
                self._trouble, self._busy = error, False
                self._asked += 1
                self._changed.notify_all()
                if error is None:
                    pause = self._first_pause
                    if self._queue and self._queue[0] is change:
                        self._queue.popleft()
                    continue
                if before is None and not (self._awaited and _is_wrong(error)):
                    _LOG.warning(
                        "%s; the study goes on, its runs are brought up to date later", error
                    )
                self._changed.wait_for(lambda: self._stopped or self._hurry, pause)
                self._hurry = False
                pause = min(2 * pause, self._longest_pause)


def _is_wrong(error: Exception) -> bool:
    """Return whether what went wrong stays so, however often it is tried."""
    return not isinstance(error, StoreUnavailable)
