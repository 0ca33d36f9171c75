"""What is to run on Ray next, as Tune asks for it: a list that attempts are added to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from orchestrator.executors.base import Job
from orchestrator.executors.ray_worker import Parcel
from orchestrator.stopping import Stop


class Queue(Searcher):  # type: ignore[misc]
    """Gives Tune one job after another, and remembers which of them have not ended."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        at_once: int,
        parcel: Callable[[Job], Parcel],
        stop: Stop,
    ) -> None:
        """Nothing is given out yet.

        Args:
            jobs: in their order.
            at_once: how many run at the same time.
            parcel: makes what travels of a job, when its turn has come.
            stop: looked at before each.
        """
        super().__init__()
        self._left = deque(jobs)
        self._at_once = at_once
        self._parcel = parcel
        self._stop = stop
        self._given: dict[str, Job] = {}  # by id, those that have not ended

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job's settings; None: not now; FINISHED: never."""
        if self._stop.no_more:
            self._left.clear()
        if not self._left:
            return None if self._given else Searcher.FINISHED
        if len(self._given) >= self._at_once:
            return None
        job = self._left.popleft()
        self._given[job.id] = job
        return {"job": job.id, "parcel": self._parcel(job)}

    def job(self, job_id: str) -> Job:
        """Return a job that was given out and has not ended."""
        return self._given[job_id]

    def ended(self, job: Job, again: Job | None) -> None:
        """Take note that a job has ended; its trial's next attempt is the next to begin."""
        if again is not None:
            self._left.appendleft(again)
        del self._given[job.id]

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing: `ended` is told with the next attempt, if there is one."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is to run is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Be empty in the file that Tune writes for a restore."""
        return {}
