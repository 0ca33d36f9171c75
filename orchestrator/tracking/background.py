"""Run a tracker in a thread, so that no training waits for its store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.plan.plan import Plan
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.base import (
    ArmView,
    PendingRuns,
    Status,
    StudyView,
    Tracker,
    TrackingState,
    TrialView,
)
from orchestrator.tracking.projection import MlflowTracker

_LOG = logging.getLogger(__name__)


class BackgroundTracker(Tracker):
    """Updates a store in a thread whenever a study's view changes.

    Only `check` and `confirm` block, for the first few seconds, and `close`, as long as the store
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
            begin_within: seconds that `check` and `confirm` wait for an error of the store.
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
        self._version = 1  # of what the store is brought to; without a study, it is only checked
        self._tried = self._shown = 0  # versions that were tried last, and successfully
        self._error: Exception | None = None  # of the last try
        self._awaited: int | None = None  # version whose error `confirm` raises
        self._retry_now = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    def check(self) -> None:
        """Check whether the store can be used, before anything is created.

        Raises:
            UserError: the store can never be used: its address is to be corrected.
        """
        with self._changed:
            self._awaited = self._version
            self._thread.start()
            self.confirm()

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Start to show a study, or continue with another plan of it."""
        with self._changed:
            if self.study is None:
                self._awaited = self._version + 1
            super().open(plan, done, began)
            if not self._thread.is_alive() and not self._stopped:
                self._thread.start()

    def confirm(self) -> None:
        """Wait for a while until the store is known to be usable or not.

        Raises:
            UserError: the store can never be used: its address is to be corrected.
        """
        with self._changed:
            awaited = self._awaited or 0
            if not self._changed.wait_for(lambda: self._tried >= awaited, self._begin_within):
                _LOG.warning(
                    "the MLflow store %s has not answered in %.0f s; the study goes on, and its "
                    "runs are shown when it does",
                    self.address,
                    self._begin_within,
                )
            self._awaited = None
            if self._error is not None and not isinstance(self._error, StoreUnavailable):
                self._stop()
                raise self._error

    def reconcile(self, study: StudyView) -> None:
        """Have the thread bring the store up to date with a study's view."""
        with self._changed:
            self.study = study
            self._version += 1
            self._changed.notify_all()

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """Show the end, and wait until all is shown or the store is known to be unavailable."""
        with self._changed:
            self._retry_now = True
            super().close(arms, status, report, ended)
            completed, deadline = -1, 0.0
            while not self._stopped and self._shown < self._version:
                if self._error is not None and self._tried == self._version:
                    break
                if self._tracker.store.completed_requests > completed:
                    completed = self._tracker.store.completed_requests
                    deadline = time.monotonic() + self._patience
                elif time.monotonic() >= deadline:
                    break
                self._changed.wait(1.0)
            self._stop()

    def state(self) -> TrackingState:
        """Return what could not be shown, what the store rejects, and where the arms are."""
        with self._changed:
            study = self.study
            if study is None or self._shown == self._version:
                return self._tracker.state()
            shown, failures = dict(self._tracker.shown), dict(self._tracker.failures)
            missing = [
                view.trial.name
                for key, view in study.trials.items()
                if view.status != "RUNNING" and shown.get(key) is not view
            ]
            silent = f"the MLflow store {self.address} does not answer"
            reason = str(self._error or next(iter(failures.values()), silent))
            pending = PendingRuns(reason=reason, trials=tuple(dict.fromkeys([*failures, *missing])))
            refused = self._tracker.store.refused
            return TrackingState(pending=pending, refused=refused, compare=None)

    def _stop(self) -> None:
        self._stopped = True
        self._changed.notify_all()

    def _run(self) -> None:
        """Bring the store up to date with each new version, until it is stopped."""
        pause = self._first_pause
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or self._shown < self._version,
                    None if self.study is None else self._follow_every,
                )
                if self._stopped:
                    return
                study, version, previous = self.study, self._version, self._error
            error = self._try(study)
            with self._changed:
                self._tried, self._error = version, error
                self._changed.notify_all()
                if error is None:
                    pause, self._shown = self._first_pause, version
                    continue
                raised = self._awaited is not None and not isinstance(error, StoreUnavailable)
                if previous is None and not raised:
                    _LOG.warning(
                        "%s; the study goes on, its runs are brought up to date later", error
                    )
                self._changed.wait_for(lambda: self._stopped or self._retry_now, pause)
                self._retry_now = False
                pause = min(2 * pause, self._longest_pause)

    def _try(self, study: StudyView | None) -> Exception | None:
        """Bring the store up to date once, and return what went wrong."""
        try:
            if study is None:
                self._tracker.store.check()
            else:
                self._tracker.reconcile(study)
        except Exception as error:  # an error of the tracker must not end the study
            return error
        return None
