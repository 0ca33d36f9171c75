"""Show a study in MLflow while it runs, from a thread, so that no training waits for the store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.plan.plan import Plan
from orchestrator.tracking.address import StoreUnavailable
from orchestrator.tracking.projection import MlflowProjection
from orchestrator.tracking.views import (
    ArmView,
    FinalSnapshot,
    Status,
    StudyView,
    TrackingState,
    TrialView,
)

_LOG = logging.getLogger(__name__)


class Tracker:
    """Collects the view of a study, and has a thread project it to MLflow whenever it changes.

    Only `check` and `confirm` block, for the first few seconds, and `close`, as long as the store
    answers. An unavailable store is reported once, in one line, and tried again at growing
    intervals.
    """

    #: Seconds that `check` and `confirm` wait for an error of the store.
    begin_within = 30.0
    #: Seconds that `close` waits for an answer of the store.
    patience = 45.0
    #: Seconds until an unavailable store is tried again, doubled each time up to the longest.
    first_pause, longest_pause = 2.0, 60.0
    #: Seconds between two checks of the curves of running trials.
    follow_every = 3.0

    def __init__(self, projection: MlflowProjection) -> None:
        """Create a tracker without any request yet."""
        self._projection = projection
        self._changed = threading.Condition()
        self._study: StudyView | None = None  # None: the store is only checked
        self._version = 1  # of the view
        self._tried = self._shown = 0  # versions that were tried last, and successfully
        self._error: Exception | None = None  # of the last try
        self._awaited: int | None = None  # version whose error `confirm` raises
        self._retry_now = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    @property
    def address(self) -> str:
        """The tracking URI, without secrets."""
        return self._projection.store.address

    def check(self) -> None:
        """Check whether the store can be used, before anything is created.

        Raises:
            UserError: the store can never be used: its address must be corrected.
        """
        with self._changed:
            self._awaited = self._version
            self._thread.start()
            self.confirm()

    def open(self, plan: Plan, done: Sequence[TrialView], began: float | None = None) -> None:
        """Start to show a study, which began at `began`, or continue with another plan of it."""
        with self._changed:
            if self._study is None:
                self._awaited = self._version + 1
            self._update(
                StudyView(plan=plan, began=began, trials={view.key: view for view in done})
            )
            if not self._thread.is_alive() and not self._stopped:
                self._thread.start()

    def confirm(self) -> None:
        """Wait for a while until the store is known to be usable or not.

        Raises:
            UserError: the store can never be used: its address must be corrected.
        """
        with self._changed:
            awaited = self._awaited or 0
            if not self._changed.wait_for(lambda: self._tried >= awaited, self.begin_within):
                _LOG.warning(
                    "the MLflow store %s has not answered in %.0f s; the study continues, and "
                    "its runs are shown once it answers",
                    self.address,
                    self.begin_within,
                )
            self._awaited = None
            if self._error is not None and not isinstance(self._error, StoreUnavailable):
                self._stop()
                raise self._error

    def show(self, view: TrialView) -> None:
        """Show a trial as running, or as ended."""
        with self._changed:
            assert self._study is not None, "open() comes first"
            self._update(replace(self._study, trials={**self._study.trials, view.key: view}))

    def close(
        self,
        arms: Sequence[ArmView],
        status: Status,
        report: Path | None,
        ended: float | None = None,
    ) -> None:
        """Show the end of a run, at `ended` or now, with the report's folder.

        Wait until all is shown or the store is known to be unavailable.
        """
        end = FinalSnapshot(time=time.time(), status=status, ended=ended, arms=tuple(arms))
        with self._changed:
            assert self._study is not None, "open() comes first"
            self._retry_now = True
            self._update(replace(self._study, ends=(end,), report=report))
            completed, deadline = -1, 0.0
            while not self._stopped and self._shown < self._version:
                if self._error is not None and self._tried == self._version:
                    break
                if self._projection.store.completed_requests > completed:
                    completed = self._projection.store.completed_requests
                    deadline = time.monotonic() + self.patience
                elif time.monotonic() >= deadline:
                    break
                self._changed.wait(1.0)
            self._stop()

    def state(self) -> TrackingState:
        """Return what could not be shown, what the store rejects, and where the arms are."""
        with self._changed:
            if self._study is None or self._shown == self._version:
                return self._projection.state()
            return self._projection.state(self._study, self._error)

    def _update(self, study: StudyView) -> None:
        """Have the thread project a new view."""
        self._study = study
        self._version += 1
        self._changed.notify_all()

    def _stop(self) -> None:
        self._stopped = True
        self._changed.notify_all()

    def _run(self) -> None:
        """Project each new version of the view, until it is stopped."""
        pause = self.first_pause
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._stopped or self._shown < self._version,
                    None if self._study is None else self.follow_every,
                )
                if self._stopped:
                    return
                study, version, previous = self._study, self._version, self._error
            error = None
            try:
                if study is None:
                    self._projection.store.check()
                else:
                    self._projection.reconcile(study)
            except Exception as raised:  # an error of the projection must not end the study
                error = raised
            with self._changed:
                self._tried, self._error = version, error
                self._changed.notify_all()
                if error is None:
                    pause, self._shown = self.first_pause, version
                    continue
                permanent = not isinstance(error, StoreUnavailable)
                if previous is None and not (permanent and self._awaited is not None):
                    _LOG.warning("%s; the study continues, and its runs are updated later", error)
                self._changed.wait_for(lambda: self._stopped or self._retry_now, pause)
                self._retry_now = False
                pause = min(2 * pause, self.longest_pause)
