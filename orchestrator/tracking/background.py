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
from typing import Protocol

from orchestrator.plan import Plan
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.base import ArmView, Status, Tracker, TrialView, Waiting

_LOG = logging.getLogger(__name__)


class ResumableTracker(Tracker, Protocol):
    """A tracker that can be asked for the same again."""

    @property
    def answers(self) -> int:
        """A number that grows while the store answers."""

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made."""

    def refresh(self) -> None:
        """Look up what the store has, before something is asked for again."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """Something that the tracker is to show; it is asked for it until it is done."""

    make: Callable[[], None]
    trials: tuple[str, ...] = ()  # whose end it shows
    checks: bool = False  # whether it shows nothing


class BackgroundTracker:
    """Brings a store up to date in a thread, change by change; what cannot be shown waits.

    Nothing here blocks but `check` and `open`, for the first few seconds, and `close`, as long as
    the store answers. A store that is away is said once, in a line, and asked again at growing
    intervals. What a store that is there does not do, asked twice, is left out: the rest goes on.
    """

    def __init__(
        self,
        tracker: ResumableTracker,
        *,
        open_within: float = 30.0,
        patience: float = 45.0,
        first_pause: float = 2.0,
        longest_pause: float = 60.0,
    ) -> None:
        """Nothing is asked yet.

        Args:
            tracker: what is asked.
            open_within: seconds that `check` and `open` each wait for the store's first answer.
            patience: seconds that `close` waits for an answer of a store that does not give one.
            first_pause: seconds until a store that is away is asked again; then twice as many,
            longest_pause: up to so many.
        """
        self.address = tracker.address
        self._tracker = tracker
        self._open_within, self._patience = open_within, patience
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._changed = threading.Condition()
        self._queue: deque[_Change] = deque()
        self._curves_grew = False
        self._trouble: Exception | None = None  # of what was asked last
        self._left_out: list[tuple[_Change, Exception]] = []
        self._asked = 0  # how often something was tried
        self._busy = self._hurry = self._stopped = self._opened = False
        self._awaited = False  # whether somebody waits for an answer, and raises it
        self._shown = False  # whether anything is
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made.

        Raises:
            UserError: the store is not away but wrong: the address is to be mended.
        """
        self._begin(_Change(make=self._tracker.check, checks=True))

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Begin to show a study.

        Raises:
            UserError: the store is not away but wrong: the address is to be mended.
        """
        names = tuple(view.trial.name for view in done)
        change = _Change(make=partial(self._tracker.open, plan, list(done), began), trials=names)
        if self._opened:
            self._add(change)
        elif not self._begin(change):
            _LOG.warning(
                "the MLflow store %s has not answered in %.0f s; the study goes on, and its runs "
                "are shown when it does",
                self.address,
                self._open_within,
            )
        self._opened = True

    def show(self, view: TrialView) -> None:
        """Show a trial as running, or as ended."""
        ended = () if view.status == "RUNNING" else (view.trial.name,)
        self._add(_Change(make=partial(self._tracker.show, view), trials=ended))

    def follow(self) -> None:
        """Send what is new in the curves of running trials."""
        with self._changed:
            self._curves_grew = True
            self._changed.notify_all()

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
            self._changed.notify_all()
            once_more, answers = self._asked + self._busy + 1, self._tracker.answers
            due = time.monotonic() + self._patience
            while self._queue and time.monotonic() < due:
                self._changed.wait(1.0)
                if self._trouble is not None and self._asked >= once_more:
                    break
                if self._tracker.answers > answers:
                    answers, due = self._tracker.answers, time.monotonic() + self._patience
        self._stop()

    def waiting(self) -> Waiting | None:
        """Return what could not be shown."""
        with self._changed:
            changes = [*(change for change, _ in self._left_out), *self._queue]
            if not changes:
                return None
            away = f"the MLflow store {self.address} does not answer"
            reason = self._left_out[0][1] if self._left_out else self._trouble or away
            names = dict.fromkeys(name for change in changes for name in change.trials)
            study = bool(self._queue) or not all(change.trials for change in changes)
            return Waiting(reason=str(reason), trials=tuple(names), study=study)

    def refused(self) -> Mapping[str, str]:
        """Return what the store takes in no way, and why."""
        return self._tracker.refused()

    def compare_address(self) -> str | None:
        """Return MLflow's compare page of the arms; None where there is none yet."""
        return None if self.waiting() is not None else self._tracker.compare_address()

    def _begin(self, change: _Change) -> bool:
        """Ask for something, and wait a while for the answer; return whether there is one."""
        with self._changed:
            if not self._thread.is_alive():
                self._thread.start()
            asked, self._awaited = self._asked, True
            self._add(change)
            answered = self._changed.wait_for(lambda: self._asked > asked, self._open_within)
            self._awaited = False
        if self._trouble is not None and _is_wrong(self._trouble):
            self._stop()
            raise self._trouble
        return answered

    def _add(self, change: _Change) -> None:
        with self._changed:
            self._queue.append(change)
            self._changed.notify_all()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        """Show what has changed, in order, until it is stopped."""
        pause = self._first_pause
        told: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._queue or self._curves_grew)
                if self._stopped:
                    return
                change = self._queue[0] if self._queue else _Change(make=self._tracker.follow)
                self._curves_grew = self._curves_grew and bool(self._queue)
                before, self._busy = self._trouble, True
            error = self._tried(change, again=before is not None)
            if self._shown and _is_wrong(error):  # a run may be gone: it is looked up, or made anew
                error = self._tried(change, again=True)
            with self._changed:
                left_out = self._shown and _is_wrong(error)
                self._trouble = None if left_out else error
                self._asked, self._busy = self._asked + 1, False
                if self._trouble is None:
                    pause, self._shown = self._first_pause, self._shown or not change.checks
                    if self._queue and self._queue[0] is change:
                        self._queue.popleft()
                        if error is not None:
                            self._left_out.append((change, error))
                raised = self._awaited and _is_wrong(error)
                news = str(error) not in told if left_out else before is None
                if error is not None and news and not raised:
                    told.add(str(error))
                    later = "its runs are brought up to date later"
                    rest = "and the rest of it is shown" if left_out else later
                    _LOG.warning("%s; the study goes on, %s", error, rest)
                self._changed.notify_all()
                if self._trouble is not None:
                    self._changed.wait_for(lambda: self._stopped or self._hurry, pause)
                    self._hurry = False
                    pause = min(2 * pause, self._longest_pause)

    def _tried(self, change: _Change, *, again: bool) -> Exception | None:
        try:
            if again:
                self._tracker.refresh()
            change.make()
        except Exception as error:  # shown to people: nothing that goes wrong here ends a study
            return error
        return None


def _is_wrong(error: Exception | None) -> bool:
    """Return whether what went wrong stays so, however often it is tried."""
    return error is not None and not isinstance(error, StoreUnavailable)
