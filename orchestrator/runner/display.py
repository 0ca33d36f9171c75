"""Display a study's progress: a live table, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chip_core.results import Progress
from chip_core.selection.rule import count_select_runs
from orchestrator.executors.base import (
    COPYING,
    Answered,
    EarlyStopped,
    Event,
    Failed,
    Finished,
    Job,
    Progressed,
    Started,
)

ROWS = 24  # rows of the live table; the rest is counted
PLAIN_EVERY = 10.0  # seconds between a trial's plain lines
_TRAINING = 4.0  # weight relative to a benchmark's answers: training takes longest
_SCORING = 0.1  # likewise, of scoring by rules
#: Weight of a phase, by its first word; 1 for others. Parity checks of an engine do not count.
_WEIGHTS = {
    "train": _TRAINING, "score": _SCORING, "judge": _SCORING, "measure": 0.0, "check": 0.0
}  # fmt: skip
_BEFORE = ("start", COPYING, "check data")  # phases before the progress starts to count
_STYLES = {
    "running": "cyan", "answered": "cyan", "done": "green", "failed": "bold red",
    "killed": "red", "cut": "yellow", "waiting": "dim",
}  # fmt: skip


class DisplayedTrial(Protocol):
    """What a line displays: a trial, or a part of a reference pass."""

    @property
    def fingerprint(self) -> str:
        """Its fingerprint."""

    @property
    def arm(self) -> str:
        """Text of the column `arm`."""

    @property
    def seed(self) -> int | None:
        """Its seed, if it has one."""

    @property
    def name(self) -> str:
        """Its display name."""


#: A job, what it displays, and the number of the attempt.
Entry = tuple[Job, DisplayedTrial, int]


@dataclass(kw_only=True)
class _Line:
    job: Job
    trial: DisplayedTrial
    state: Literal["waiting", "running", "answered", "done", "failed", "killed", "cut"] = "waiting"
    whole: float = 0.0  # sum of the weights of its phases
    progress: Progress | None = None
    loss: float | None = None
    began: float = 0.0
    worked_from: float = 0.0  # when the model was loaded and the work was first reported
    worked_share: float = 0.0  # what was done of it by then
    ended: float = 0.0
    reason: str = ""
    told: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def begin(self, job: Job) -> None:
        """Start with a new job."""
        self.job, self.whole = job, 1.0
        if job.shard is None:
            asked = count_select_runs(job.config) if job.trains else 1
            benchmarks = asked * len(job.config.benchmarks.select)
            benchmarks += len(job.config.benchmarks.report)
            self.whole = benchmarks * (_SCORING if job.scores else 1.0 + _SCORING)
            self.whole += _TRAINING if job.trains else 0.0
            self.whole += 1.0 if job.trains and job.config.pairs.rounds else 0.0

    def share(self) -> float:
        """Return the progress from 0 to 1, by the phases' steps and items."""
        return min(sum(self.phases.values()) / max(self.whole, _SCORING), 1.0)

    def take(self, progress: Progress) -> None:
        """Record the trial's progress."""
        self.progress = progress
        kind, _, benchmark = progress.phase.partition(" ")
        weight = _WEIGHTS.get(kind, 1.0)
        if progress.phase not in _BEFORE:
            first, self.worked_from = not self.worked_from, self.worked_from or time.monotonic()
            # Scoring waits for the judge's replies, so both count as one phase.
            phase = f"score {benchmark}" if kind == "judge" else progress.phase
            now, before = weight * progress.done / max(progress.total, 1), self.phases.get(phase, 0)
            if self.job.config.training.score_at and kind != "train" and now < before == weight:
                # The benchmark is answered again, after a further step.
                self.phases[f"{phase}, {len(self.phases)}"] = before
            self.phases[phase] = now
            self.worked_share = self.share() if first else self.worked_share
        self.loss = progress.figures.get("loss", self.loss)


class Board:
    """The state of every trial of a run, and the remaining time."""

    def __init__(self, jobs: Sequence[Entry]) -> None:
        self.lines = {job.id: _Line(job=job, trial=trial) for job, trial, _ in jobs}
        for line in self.lines.values():
            line.begin(line.job)

    def take(self, event: Event) -> _Line:
        """Record an event and return its line."""
        line = self.lines[event.job.id]
        match event:
            case Started():
                if line.state != "answered":
                    line.began = time.monotonic()
                line.state = "running"
            case Progressed(progress=progress):
                line.take(progress)
            case Answered(scoring=next_job):
                line.state, line.job = "answered", next_job
                self.lines[next_job.id] = self.lines.pop(event.job.id)
            case Finished():
                line.state, line.ended = "done", time.monotonic()
            case Failed(retry=Job() as next_job):
                line.state, line.reason = "waiting", event.reason
                line.begin(next_job)
                self.lines[next_job.id] = self.lines.pop(event.job.id)
            case Failed(reason=reason, cause=cause):
                line.state = "killed" if cause == "stopped" else "failed"
                line.ended, line.reason = time.monotonic(), reason
            case EarlyStopped(reason=reason):
                line.state, line.ended, line.reason = "cut", time.monotonic(), reason
        return line

    def count(self, *states: str, passes: bool = False) -> int:
        """Return the number of trials, or parts of reference passes, in one of the states."""
        return sum(line.state in states for line in self.of(passes=passes))

    def of(self, *, passes: bool) -> list[_Line]:
        """Return the lines of trials, or of parts of reference passes."""
        return [line for line in self.lines.values() if (line.job.shard is not None) == passes]

    def eta(self, line: _Line) -> float | None:
        """Return the remaining seconds of a running trial; None if it is too early to tell."""
        share = line.share()
        done = share - line.worked_share
        if done < 0.02:
            return None
        return (time.monotonic() - line.worked_from) * (1 - share) / done

    def overall_eta(self, *, passes: bool = False) -> float | None:
        """Return the remaining seconds of all trials, from the share done so far.

        Args:
            passes: of parts of reference passes instead of trials.
        """
        lines = self.of(passes=passes)
        begun = [line for line in lines if line.state != "waiting"]
        if not begun:
            return None
        over = ("done", "failed", "killed", "cut")
        weights = {line.job.id: 0.25 if line.job.untrained else 1.0 for line in lines}
        done = sum(
            weights[line.job.id] * (1.0 if line.state in over else line.share()) for line in begun
        )
        whole = sum(weights.values())
        if done / whole < 0.01:
            return None
        since = time.monotonic() - min(line.began for line in begun)
        return since * (whole - done) / done


class Display(Protocol):
    """Displays a run. Use it as a context manager around the run."""

    def __enter__(self) -> Display:
        """Start the display."""

    def __exit__(self, *error: object) -> None:
        """Leave the last state on the screen."""

    def take(self, event: Event) -> None:
        """Show an event."""


class LiveDisplay:
    """A live table."""

    def __init__(self, console: Console, jobs: Sequence[Entry]) -> None:
        self._board = Board(jobs)
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2)

    def __enter__(self) -> LiveDisplay:
        """Begin to draw."""
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Draw once more and stop."""
        self._live.__exit__(None, None, None)

    def take(self, event: Event) -> None:
        """Record an event. It is shown at the next refresh."""
        self._board.take(event)

    def _draw(self) -> Group:
        board = self._board
        table = Table(box=None, pad_edge=False)
        for title in ("trial", "arm", "seed", "state", "step", "loss", "left"):
            table.add_column(
                title, justify="right" if title in ("step", "loss", "left") else "left"
            )
        order = {
            "running": 0, "answered": 1, "failed": 2, "killed": 3, "cut": 4, "done": 5,
            "waiting": 6,
        }  # fmt: skip
        lines = sorted(board.lines.values(), key=lambda line: (order[line.state], -line.ended))
        for line in lines[:ROWS]:
            table.add_row(*self._cells(line))
        hidden = len(lines) - ROWS
        heads = []
        for passes, what in ((True, "parts of reference passes"), (False, "trials")):
            whole = len(board.of(passes=passes))
            if not whole:
                continue
            said = f"{board.count('done', passes=passes)} of {whole} {what} done"
            for state in ("failed", "killed", "cut"):
                count = board.count(state, passes=passes)
                said += f", {count} {state}" if count else ""
            eta = board.overall_eta(passes=passes)
            over = board.count("done", "failed", "killed", "cut", passes=passes) == whole
            heads.append(said if over else f"{said}, {_left(eta)} left")
        head = " · ".join(heads)
        more = [Text(f"… and {hidden} more", style="dim")] if hidden > 0 else []
        return Group(Text(head, style="bold"), table, *more)

    def _cells(self, line: _Line) -> list[Text | str]:
        state = Text(line.state, style=_STYLES[line.state])
        where, left = "", ""
        if line.state == "running":
            left = _left(self._board.eta(line))
            if line.progress is not None:
                where = _where(line.progress)
        elif line.state in ("failed", "killed", "cut"):
            state = Text(f"{line.state}: {line.reason}", style=_STYLES[line.state])
        seed = "—" if line.trial.seed is None else str(line.trial.seed)
        loss = "" if line.loss is None else f"{line.loss:.4f}"
        return [line.trial.fingerprint[:8], line.trial.arm, seed, state, where, loss, left]


class PlainDisplay:
    """Prints a line for each event, and regularly the progress of trials."""

    def __init__(self, console: Console, jobs: Sequence[Entry]) -> None:
        self._board = Board(jobs)
        self._console = console

    def __enter__(self) -> PlainDisplay:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def take(self, event: Event) -> None:
        """Print an event; progress at most every ten seconds per trial."""
        board = self._board
        line = board.take(event)
        passes = line.job.shard is not None
        ended = board.count("done", "failed", "killed", "cut", passes=passes)
        whole = len(board.of(passes=passes))
        tally = f"[{ended}/{whole}, {_left(board.overall_eta(passes=passes))} left]"
        match event:
            case Started() if line.job.scores and line.progress is not None:
                pass  # a further step of a started trial
            case Started():
                self._say(f"{line.trial.name}: started")
            case Answered():
                self._say(f"{line.trial.name}: answered, to be scored")
            case Finished():
                self._say(f"{line.trial.name}: done in {line.ended - line.began:.0f} s {tally}")
            case Failed(retry=Job() as next_job):
                said = "".join(f"; {note}" for note in next_job.notes[len(event.job.notes) :])
                self._say(f"{line.trial.name}: tried again: {event.reason}{said}")
            case Failed(cause="stopped"):
                self._say(f"{line.trial.name}: KILLED: {event.reason}")
            case Failed(reason=reason):
                self._say(f"{line.trial.name}: FAILED: {reason} {tally}")
            case EarlyStopped(reason=reason):
                self._say(f"{line.trial.name}: {reason} {tally}")
            case Progressed(progress=progress) if progress.phase != "start":
                now = time.monotonic()
                if now - line.told >= PLAIN_EVERY:
                    line.told = now
                    loss = "" if line.loss is None else f", loss {line.loss:.4f}"
                    where = _where(progress)
                    left = _left(board.eta(line))
                    self._say(f"{line.trial.name}: {where}{loss}, {left} left {tally}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def display_for(console: Console, jobs: Sequence[Entry]) -> Display:
    """Return the live table on a terminal, plain lines elsewhere."""
    return (LiveDisplay if console.is_terminal else PlainDisplay)(console, jobs)


def _where(progress: Progress) -> str:
    """Return a trial's phase and progress, with the rate of its answers if it has one."""
    where = f"{progress.phase} {progress.done}/{progress.total}"
    for name, unit in (("items_per_second", "/s"), ("tokens_per_second", " tokens/s")):
        if (rate := progress.figures.get(name)) is not None:
            where += f", {rate:.3g}{unit}"
    return where


def _left(seconds: float | None) -> str:
    """Format a duration; `?` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
