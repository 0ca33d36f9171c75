"""Run a tracker in a thread, so that no training waits for its store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.plan.plan import Plan
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.base import ArmView, Status, StudyView, Tracker, TrialView, Waiting
from orchestrator.tracking.projection import MlflowTracker

_LOG = logging.getLogger(__name__)


class BackgroundTracker(Tracker):
    """Updates a store in a thread whenever a study's view changes.

    Only `check` and `open` block, for the first few seconds, and `close`, as long as the store
    answers. An unavailable store is reported once, in one line, and tried again at growing
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
        """Create a tracker without any request yet.

        Args:
            tracker: tracker that updates the store.
            begin_within: seconds that `check` and `open` wait for an error of the store.
            patience: seconds that `close` waits for an answer of the store.
            first_pause: seconds until an unavailable store is tried again, doubled each time.
            longest_pause: largest number of these seconds.
            follow_every: seconds between two checks of the curves of running trials.
        """
        self.address = tracker.address
        self._tracker, self._follow_every = tracker, follow_every
        self._begin_within, self._patience = begin_within, patience
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._changed = threading.Condition()
        self._shown: object = object()  # the view that was brought; None: the store was checked
        self._trouble: Exception | None = None  # of what was asked last
        self._asked = 0  # how often something was tried
        self._busy = self._hurry = self._stopped = False
        self._awaited = False  # whether somebody waits for an answer, and raises what is wrong
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    def check(self) -> None:
        """Find out whether the store can be used, before anything is made.

        Raises:
            UserError: the store is not away but wrong: the address is to be mended.
        """
        with self._changed:
            self._thread.start()
            self._await()

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Begin to show a study, or go on with more of it.

        Raises:
            UserError: at the beginning: the store is not away but wrong.
        """
        with self._changed:
            first = self.study is None
            super().open(plan, done, began)
            if not self._thread.is_alive() and not self._stopped:
                self._thread.start()
            if first:
                self._await()

    def bring(self, study: StudyView) -> None:
        """Let the thread bring the store to this, soon."""
        with self._changed:
            self.study = study
            self._changed.notify_all()

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """Show the end, and wait until everything is shown or the store is known to be away."""
        with self._changed:
            self._hurry = True
            super().close(arms, status, report, ended)
            once_more, answers = self._asked + self._busy + 1, self._tracker.answers
            due = time.monotonic() + self._patience
            while self._shown is not self.study and time.monotonic() < due:
                self._changed.wait(1.0)
                if self._trouble is not None and self._asked >= once_more:
                    break
                if self._tracker.answers > answers:
                    answers, due = self._tracker.answers, time.monotonic() + self._patience
            self._stop()

    def waiting(self) -> Waiting | None:
        """Return what could not be shown."""
        with self._changed:
            left_out = self._tracker.waiting()
            if self.study is None or self._shown is self.study:
                return left_out
            away = f"the MLflow store {self.address} does not answer"
            brought, names = dict(self._tracker.brought), dict[str, None]()
            for place, view in self.study.trials.items():
                if view.status != "RUNNING" and brought.get(place) is not view:
                    names[view.trial.name] = None
            if left_out is not None:
                away, names = left_out.reason, {**dict.fromkeys(left_out.trials), **names}
            return Waiting(reason=str(self._trouble or away), trials=tuple(names))

    def refused(self) -> Mapping[str, str]:
        """Return what the store rejects, and why."""
        return self._tracker.refused()

    def compare_address(self) -> str | None:
        """Return MLflow's compare page of the arms; None where there is none yet."""
        return None if self.waiting() is not None else self._tracker.compare_address()

    def _await(self) -> None:
        """Wait for the first answer of the store, and raise its error if it is permanent."""
        asked, self._awaited = self._asked + self._busy, True
        if not self._changed.wait_for(lambda: self._asked > asked, self._begin_within):
            _LOG.warning(
                "the MLflow store %s has not answered in %.0f s; the study goes on, and its runs "
                "are shown when it does",
                self.address,
                self._begin_within,
            )
        self._awaited = False
        if self._trouble is not None and _is_wrong(self._trouble):
            self._stop()
            raise self._trouble

    def _stop(self) -> None:
        self._stopped = True
        self._changed.notify_all()

    def _work(self) -> None:
        """Show what is new, until it is stopped."""
        pause = self._first_pause
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or self._shown is not self.study, self._follow_every
                )
                if self._stopped:
                    return
                study, before, self._busy = self.study, self._trouble, True
            error = None
            try:
                if study is not None:
                    self._tracker.bring(study)
                elif self._shown is not None:
                    self._tracker.check()
            except Exception as raised:  # an error of the tracker must not end the study
                error = raised
            with self._changed:
                self._trouble, self._busy = error, False
                self._asked += 1
                self._changed.notify_all()
                if error is None:
                    pause, self._shown = self._first_pause, study
                    continue
                if before is None and not (self._awaited and _is_wrong(error)):
                    _LOG.warning(
                        "%s; the study goes on, its runs are brought up to date later", error
                    )
                self._changed.wait_for(lambda: self._stopped or self._hurry, pause)
                self._hurry = False
                pause = min(2 * pause, self._longest_pause)


def _is_wrong(error: Exception) -> bool:
    """Return whether an error is permanent."""
    return not isinstance(error, StoreUnavailable)
