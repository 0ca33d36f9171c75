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

from chip_core.errors import UserError
from orchestrator.plan import Plan, Trial
from orchestrator.tracking.base import ArmView, Status, Tracker, TrialView, Waiting
from orchestrator.tracking.trouble import StoreAway

_LOG = logging.getLogger(__name__)


class Resuming(Tracker, Protocol):
    """A tracker that can be asked for the same again."""

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made."""

    def refresh(self) -> None:
        """Look up what the store has, before something is asked for again."""

    @property
    def answers(self) -> int:
        """A number that grows while the store answers."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """Something the tracker is asked for; told in order, again and again until it is done."""

    make: Callable[[], None]
    trials: tuple[str, ...] = ()  # whose end it shows


class BackgroundTracker:
    """Asks a tracker for one thing after another, in a thread; what cannot be shown waits.

    Nothing here blocks but `check` and `open`, for the first few seconds, and `close`, as long as
    the store answers. A store that is away is said once, in a line, and asked again at growing
    intervals. What a store that is there does not do, asked twice, is left out: the rest goes on.
    """

    def __init__(
        self,
        tracker: Resuming,
        *,
        check_within: float = 30.0,
        open_within: float = 30.0,
        patience: float = 45.0,
        first_pause: float = 2.0,
        longest_pause: float = 60.0,
    ) -> None:
        """Nothing is asked yet.

        Args:
            tracker: what is asked.
            check_within: seconds that `check` waits for the store to say what is wrong.
            open_within: seconds that `open` waits for the store's first answer.
            patience: seconds that `close` waits for an answer of a store that does not give one.
            first_pause: seconds until a store that is away is asked again; then twice as many,
            longest_pause: up to so many.
        """
        self._tracker = tracker
        self._check_within, self._open_within, self._patience = check_within, open_within, patience
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._follow = False  # whether curves are to be sent
        self._trouble: Exception | None = None  # why the first call waits
        self._left_out: list[tuple[_Call, Exception]] = []
        self._asked = 0  # how often something was tried
        self._busy = self._hurry = self._stopped = False
        self._shown = False  # whether the store did what it was asked first
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """The tracking URI, without a password."""
        return self._tracker.address

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made.

        Raises:
            UserError: the store is not away but wrong: the address is to be mended.
        """
        wrong: list[UserError] = []

        def look() -> None:
            try:
                self._tracker.check()
            except StoreAway:
                pass  # `open` says so
            except UserError as error:
                wrong.append(error)

        looking = threading.Thread(target=look, name="tracker check", daemon=True)
        looking.start()
        looking.join(self._check_within)
        if wrong:
            raise wrong[0]

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Begin to show a study.

        Raises:
            UserError: the store is not away but wrong: the address is to be mended.
        """
        first = self._thread is None
        names = tuple(view.trial.name for view in done)
        self._ask(partial(self._tracker.open, plan, list(done), began), names)
        if not first:
            return
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._asked > 0, self._open_within)
            if self._asked == 0:
                _LOG.warning(
                    "the MLflow store %s has not answered in %.0f s; the study goes on, and its "
                    "runs are shown when it does",
                    self.address,
                    self._open_within,
                )
            wrong = self._trouble
        if wrong is not None and not isinstance(wrong, StoreAway):
            self._stop()
            raise wrong

    def start(self, trial: Trial, folders: Sequence[Path], began: float | None = None) -> None:
        """Show a trial as running."""
        self._ask(partial(self._tracker.start, trial, list(folders), began))

    def follow(self) -> None:
        """Send what is new in the curves of running trials."""
        with self._changed:
            self._follow = True
            self._changed.notify_all()

    def end(self, view: TrialView) -> None:
        """Show a trial as ended."""
        self._ask(partial(self._tracker.end, view), (view.trial.name,))

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """Show the end, and wait until everything is shown or the store is known to be away."""
        self._ask(partial(self._tracker.close, list(arms), status, report, ended))
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            once_more, answers = self._asked + self._busy + 1, self._tracker.answers
            due = time.monotonic() + self._patience
            while self._calls and time.monotonic() < due:
                self._changed.wait(1.0)
                if self._trouble is not None and self._asked >= once_more:
                    break
                if self._tracker.answers > answers:
                    answers, due = self._tracker.answers, time.monotonic() + self._patience
        self._stop()

    def waiting(self) -> Waiting | None:
        """Return what could not be shown."""
        with self._changed:
            calls = [*(call for call, _ in self._left_out), *self._calls]
            if not calls:
                return None
            away: str | Exception = f"the MLflow store {self.address} does not answer"
            reason = self._left_out[0][1] if self._left_out else self._trouble or away
            names = dict.fromkeys(name for call in calls for name in call.trials)
            study = bool(self._calls) or not all(call.trials for call in calls)
            return Waiting(reason=str(reason), trials=tuple(names), study=study)

    def refused(self) -> Mapping[str, str]:
        """Return what the store takes in no way, and why."""
        return self._tracker.refused()

    def compare_address(self) -> str | None:
        """Return MLflow's compare page of the arms; None where there is none yet."""
        return None if self.waiting() is not None else self._tracker.compare_address()

    def _ask(self, make: Callable[[], None], trials: tuple[str, ...] = ()) -> None:
        with self._changed:
            self._calls.append(_Call(make=make, trials=trials))
            self._changed.notify_all()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        """Do what is asked for, in order, until it is stopped."""
        pause = self._first_pause
        told: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._calls or self._follow)
                if self._stopped:
                    return
                call = self._calls[0] if self._calls else _Call(make=self._tracker.follow)
                self._follow = self._follow and bool(self._calls)
                before, self._busy = self._trouble, True
            error = self._tried(call, again=before is not None)
            if self._shown and _is_wrong(error):  # a run may be gone: it is looked up, or made anew
                error = self._tried(call, again=True)
            with self._changed:
                self._asked += 1
                left_out = self._shown and _is_wrong(error)
                self._trouble, self._busy = None if left_out else error, False
                if error is None or left_out:
                    pause, self._shown = self._first_pause, True
                    if self._calls and self._calls[0] is call:
                        self._calls.popleft()
                        if error is not None:
                            self._left_out.append((call, error))
                self._changed.notify_all()
                if left_out:
                    if str(error) not in told:
                        told.add(str(error))
                        _LOG.warning("%s; the study goes on, and the rest of it is shown", error)
                elif error is not None:
                    if before is None and self._said(error):
                        _LOG.warning(
                            "%s; the study goes on, its runs are brought up to date later", error
                        )
                    self._changed.wait_for(lambda: self._stopped or self._hurry, pause)
                    self._hurry = False
                    pause = min(2 * pause, self._longest_pause)

    def _tried(self, call: _Call, *, again: bool) -> Exception | None:
        try:
            if again:
                self._tracker.refresh()
            call.make()
        except Exception as error:  # shown to people: nothing that goes wrong here ends a study
            return error
        return None

    def _said(self, error: Exception) -> bool:
        """Return whether a line is to be said of it: what `open` raises is said by others."""
        return self._asked > 1 or isinstance(error, StoreAway) or not isinstance(error, UserError)


def _is_wrong(error: Exception | None) -> bool:
    """Return whether what went wrong stays so, however often it is tried."""
    return error is not None and not isinstance(error, StoreAway)
