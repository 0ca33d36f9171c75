"""What becomes of jobs on Ray, as events: what Tune says, and what their workers tell."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.tune.progress_reporter import TrialProgressCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

from chip_core.errors import StorageError
from chip_core.results import Progress, read_result
from orchestrator.executors.base import (
    CUT,
    STOP,
    Again,
    Cause,
    Cut,
    Event,
    Failed,
    Finished,
    Job,
    Progressed,
    Started,
    reason_of,
)
from orchestrator.executors.desk import Desk
from orchestrator.executors.ray_early import Referee
from orchestrator.executors.ray_queue import Queue
from orchestrator.executors.ray_worker import CAUSE, OUTSIDE, PLACE, PROGRESS, REASON
from orchestrator.stopping import Stop

#: Seconds between two looks at what running jobs tell.
FOLLOW_EVERY = 0.3


@dataclass(kw_only=True)
class _Running:
    """A job that runs, and what its worker tells, as it comes."""

    job: Job
    news_at: float = field(default_factory=time.monotonic)  # when it last told something
    last: Progress | None = None
    how: tuple[str, Cause, bool] | None = None  # reason, cause, from outside: where it failed
    cut: str | None = None  # why early stopping ends it
    told_of_cut: bool = False
    told_to_stop: bool = False
    begun: bool = True  # whether it was said to have started
    read: int = 0  # bytes of its file

    @property
    def path(self) -> Path:
        return self.job.folder / PROGRESS

    def news(self) -> list[Progress]:
        """Return what is new; a line that is not whole yet waits."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.read)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        found = [Progress(**json.loads(line)) for line in whole.splitlines()]
        if found:
            self.last, self.news_at = found[-1], time.monotonic()
        return found


class Listener(TrialProgressCallback):  # type: ignore[misc]
    """Turns what Tune says into events, in place of the callback by which Tune prints it."""

    def __init__(
        self,
        queue: Queue,
        on_event: Callable[[Event], None],
        again: Again | None,
        *,
        begin_within: float,
        stop: Stop,
        desk: Desk,
        referee: Referee | None = None,
    ) -> None:
        super().__init__()
        self.error: Exception | None = None  # what `on_event` or `again` raised
        self._queue = queue
        self._on_event = on_event
        self._again = again
        self._begin_within = begin_within
        self._stop = stop
        self._desk = desk
        self._referee = referee
        self._running: dict[str, _Running] = {}
        self._due = 0.0  # when running jobs are looked at next

    def __getstate__(self) -> dict[str, Any]:
        """Be empty in the file that Tune writes for a restore: the ledger does that here."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at what runs, now and then."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + FOLLOW_EVERY
        for running in list(self._running.values()):
            self._pass_on(running)
        for trial in trials:
            its = self._running.get(trial.config["job"])
            if its is not None and its.how is None:
                self._end_what_hangs(its, trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A job's driver has its place."""
        job = self._queue.job(trial.config["job"])
        self._running[job.id] = _Running(job=job)
        self._desk.begun(job)
        self._emit(Started(job=job))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A job's driver returned how it failed, or that it did not."""
        if result.get(REASON) is not None:
            how = (result[REASON], result[CAUSE], result[OUTSIDE])
            self._running[trial.config["job"]].how = how

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A job's driver came to its end."""
        self._end(trial, "its worker left no result in {folder}", "own")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A job's driver is gone."""
        self._end(trial, "a Ray process of this job died (killed, or out of memory)", "lost")

    def _end_what_hangs(self, running: _Running, trial: Any) -> None:
        """End a job that does not begin, or no longer goes on; let one end that is to stop."""
        silent = time.monotonic() - running.news_at
        stall_after = running.job.config.engine.stall_after
        if running.last is None:
            if self._stop.asked:
                running.how = ("stopped before it began", "stopped", False)
            elif silent > self._begin_within:
                reason = f"its worker did not begin within {self._begin_within:.0f} s"
                running.how = (reason, "lost", True)
        else:
            if self._stop.asked and not running.told_to_stop:
                with contextlib.suppress(OSError, StorageError):  # a full disk: later, perhaps
                    self._desk.tell(running.job, STOP)
                    running.told_to_stop = True
            if stall_after is not None and silent > stall_after:
                where = f"{running.last.phase} {running.last.done}/{running.last.total}"
                reason = f"its worker hangs: no progress for {silent:.0f} s at {where}"
                running.how = (reason, "lost", True)
        if running.how is not None:
            ray.kill(trial.temporary_state.ray_actor)  # and all that it owns

    def _end(self, trial: Any, otherwise: str, cause_otherwise: Cause) -> None:
        """Emit how a job ended; free its worker's place, which outlives a killed driver."""
        job = self._queue.job(trial.config["job"])
        # A driver whose node goes before it began was never said to have started.
        running = self._running.pop(job.id, None) or _Running(job=job, begun=False)
        if not running.begun:
            self._emit(Started(job=job))
        away = self._away(job)
        self._pass_on(running, ended=True)
        running.path.unlink(missing_ok=True)
        place = job.folder / PLACE
        if place.exists():
            name = place.read_text(encoding="ascii")
            if name:  # else its disk was full
                remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
            place.unlink()
        (job.folder / CUT).unlink(missing_ok=True)
        result = read_result(job.folder)
        if result is not None:  # written last: whatever came after it took nothing away
            self._queue.ended(job, None)
            self._emit(Finished(job=job, result=result))
            return
        unsaid = otherwise.format(folder=job.folder)
        reason, cause, outside = running.how or (away or unsaid, cause_otherwise, True)
        # One of several workers may have heard of it first: the others lost their connection.
        if running.cut is not None and cause != "stopped":
            self._queue.ended(job, None)
            self._emit(Cut(job=job, reason=running.cut))
            return
        failed = Failed(job=job, reason=reason, cause=cause, from_outside=outside)
        # Where what it left cannot be read, another attempt would begin at nothing.
        again = not self._stop.no_more and away is None
        following = self._following(failed) if again else None
        self._queue.ended(job, following)
        self._emit(replace(failed, again=following))

    def _away(self, job: Job) -> str | None:
        """Have here what a job left; return why that cannot be had."""
        try:
            self._desk.ended(job)
        except (StorageError, OSError) as error:
            return f"{reason_of(error)}: give the same command again when it is back"
        return None

    def _following(self, failed: Failed) -> Job | None:
        if self._again is None or self.error is not None:
            return None
        try:
            return self._again(failed)
        except Exception as error:
            self.error = error
            raise

    def _pass_on(self, running: _Running, *, ended: bool = False) -> None:
        for progress in running.news():
            self._emit(Progressed(job=running.job, progress=progress))
            why = None if self._referee is None else self._referee.verdict(running.job, progress)
            if why is not None and not ended:
                running.cut = why
        if running.cut is not None and not running.told_of_cut and not ended:
            with contextlib.suppress(OSError, StorageError):  # later, perhaps
                self._desk.tell(running.job, CUT, running.cut)
                running.told_of_cut = True

    def _emit(self, event: Event) -> None:
        if self.error is not None:
            return
        try:
            self._on_event(event)
        except Exception as error:
            self.error = error
            raise
