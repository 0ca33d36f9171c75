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
    COPYING_PHASE,
    Job,
    JobAnswered,
    JobEvent,
    JobFailed,
    JobFinished,
    JobProgressed,
    JobStarted,
    JobStoppedEarly,
)

MAX_ROWS = 24  # rows of the live table; the rest is counted
PLAIN_INTERVAL = 10.0  # seconds between a trial's plain lines
_TRAINING_WEIGHT = 4.0  # weight relative to a benchmark's answers: training takes longest
_SCORING_WEIGHT = 0.1  # likewise, of scoring by rules
#: Weight of a phase, by its first word; other phases have weight 1. Parity checks of an engine are
#: not counted.
_PHASE_WEIGHTS = {
    "train": _TRAINING_WEIGHT, "score": _SCORING_WEIGHT, "judge": _SCORING_WEIGHT,
    "measure": 0.0, "check": 0.0,
}  # fmt: skip
_SETUP_PHASES = ("start", COPYING_PHASE, "check data")  # phases before the progress starts to count
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
DisplayEntry = tuple[Job, DisplayedTrial, int]


@dataclass(kw_only=True)
class _TrialLine:
    job: Job
    trial: DisplayedTrial
    state: Literal["waiting", "running", "answered", "done", "failed", "killed", "cut"] = "waiting"
    total_weight: float = 0.0  # sum of the weights of its phases
    progress: Progress | None = None
    loss: float | None = None
    started_at: float = 0.0
    work_started_at: float = 0.0  # when the model was loaded and the work was first reported
    initial_fraction: float = 0.0  # how much of it was done by then
    ended_at: float = 0.0
    reason: str = ""
    printed_at: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def start(self, job: Job) -> None:
        """Start with a new job."""
        self.job, self.total_weight = job, 1.0
        if job.shard is None:
            scores_checkpoints = job.is_training and bool(job.config.training.score_at)
            evaluations = count_select_runs(job.config) if scores_checkpoints else 1
            benchmarks = evaluations * len(job.config.benchmarks.select)
            benchmarks += len(job.config.benchmarks.report)
            self.total_weight = benchmarks * (
                _SCORING_WEIGHT if job.is_scoring else 1.0 + _SCORING_WEIGHT
            )
            self.total_weight += _TRAINING_WEIGHT if job.is_training else 0.0
            self.total_weight += 1.0 if job.is_training and job.config.pairs.rounds else 0.0

    def fraction_done(self) -> float:
        """Return the progress from 0 to 1, by the phases' steps and items."""
        return min(sum(self.phases.values()) / max(self.total_weight, _SCORING_WEIGHT), 1.0)

    def on_progress(self, progress: Progress) -> None:
        """Record the trial's progress."""
        self.progress = progress
        kind, _, benchmark = progress.phase.partition(" ")
        weight = _PHASE_WEIGHTS.get(kind, 1.0)
        if progress.phase not in _SETUP_PHASES:
            is_first = not self.work_started_at
            self.work_started_at = self.work_started_at or time.monotonic()
            # Scoring waits for the judge's replies, so both count as one phase.
            phase = f"score {benchmark}" if kind == "judge" else progress.phase
            current = weight * progress.done / max(progress.total, 1)
            previous = self.phases.get(phase, 0)
            if (
                self.job.config.training.score_at
                and kind != "train"
                and current < previous == weight
            ):
                # The benchmark is answered again, after a further step.
                self.phases[f"{phase}, {len(self.phases)}"] = previous
            self.phases[phase] = current
            self.initial_fraction = self.fraction_done() if is_first else self.initial_fraction
        self.loss = progress.figures.get("loss", self.loss)


class Board:
    """The state of every trial of a run, and the remaining time."""

    def __init__(self, jobs: Sequence[DisplayEntry]) -> None:
        self.lines = {job.id: _TrialLine(job=job, trial=trial) for job, trial, _ in jobs}
        for line in self.lines.values():
            line.start(line.job)

    def on_event(self, event: JobEvent) -> _TrialLine:
        """Record an event and return its line."""
        line = self.lines[event.job.id]
        match event:
            case JobStarted():
                if line.state != "answered":
                    line.started_at = time.monotonic()
                line.state = "running"
            case JobProgressed(progress=progress):
                line.on_progress(progress)
            case JobAnswered(scoring_job=next_job):
                line.state, line.job = "answered", next_job
                self.lines[next_job.id] = self.lines.pop(event.job.id)
            case JobFinished():
                line.state, line.ended_at = "done", time.monotonic()
            case JobFailed(retry_job=Job() as next_job):
                line.state, line.reason = "waiting", event.reason
                line.start(next_job)
                self.lines[next_job.id] = self.lines.pop(event.job.id)
            case JobFailed(reason=reason, cause=cause):
                line.state = "killed" if cause == "stopped" else "failed"
                line.ended_at, line.reason = time.monotonic(), reason
            case JobStoppedEarly(reason=reason):
                line.state, line.ended_at, line.reason = "cut", time.monotonic(), reason
        return line

    def count(self, *states: str, passes: bool = False) -> int:
        """Return the number of trials, or parts of reference passes, in one of the states."""
        return sum(line.state in states for line in self.select_lines(passes=passes))

    def select_lines(self, *, passes: bool) -> list[_TrialLine]:
        """Return the lines of trials, or of parts of reference passes."""
        return [line for line in self.lines.values() if (line.job.shard is not None) == passes]

    def eta(self, line: _TrialLine) -> float | None:
        """Return the remaining seconds of a running trial; None if it is too early to tell."""
        fraction = line.fraction_done()
        done = fraction - line.initial_fraction
        if done < 0.02:
            return None
        return (time.monotonic() - line.work_started_at) * (1 - fraction) / done

    def overall_eta(self, *, passes: bool = False) -> float | None:
        """Return the remaining seconds of all trials, from the share done so far.

        Args:
            passes: of parts of reference passes instead of trials.
        """
        lines = self.select_lines(passes=passes)
        started_lines = [line for line in lines if line.state != "waiting"]
        if not started_lines:
            return None
        end_states = ("done", "failed", "killed", "cut")
        weights = {line.job.id: 0.25 if line.job.untrained else 1.0 for line in lines}
        done = sum(
            weights[line.job.id] * (1.0 if line.state in end_states else line.fraction_done())
            for line in started_lines
        )
        total = sum(weights.values())
        if done / total < 0.01:
            return None
        elapsed = time.monotonic() - min(line.started_at for line in started_lines)
        return elapsed * (total - done) / done


class Display(Protocol):
    """Displays a run. Use it as a context manager around the run."""

    def __enter__(self) -> Display:
        """Start the display."""

    def __exit__(self, *error: object) -> None:
        """Leave the last state on the screen."""

    def on_event(self, event: JobEvent) -> None:
        """Show an event."""


class LiveDisplay:
    """A live table."""

    def __init__(self, console: Console, jobs: Sequence[DisplayEntry]) -> None:
        self._board = Board(jobs)
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=2)

    def __enter__(self) -> LiveDisplay:
        """Begin to draw."""
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Draw once more and stop."""
        self._live.__exit__(None, None, None)

    def on_event(self, event: JobEvent) -> None:
        """Record an event. It is shown at the next refresh."""
        self._board.on_event(event)

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
        lines = sorted(board.lines.values(), key=lambda line: (order[line.state], -line.ended_at))
        for line in lines[:MAX_ROWS]:
            table.add_row(*self._cells(line))
        hidden_count = len(lines) - MAX_ROWS
        summaries = []
        for passes, unit in ((True, "parts of reference passes"), (False, "trials")):
            total = len(board.select_lines(passes=passes))
            if not total:
                continue
            summary = f"{board.count('done', passes=passes)} of {total} {unit} done"
            for state in ("failed", "killed", "cut"):
                count = board.count(state, passes=passes)
                summary += f", {count} {state}" if count else ""
            eta = board.overall_eta(passes=passes)
            is_finished = board.count("done", "failed", "killed", "cut", passes=passes) == total
            summaries.append(summary if is_finished else f"{summary}, {_format_duration(eta)} left")
        head = " · ".join(summaries)
        remainder = [Text(f"… and {hidden_count} more", style="dim")] if hidden_count > 0 else []
        return Group(Text(head, style="bold"), table, *remainder)

    def _cells(self, line: _TrialLine) -> list[Text | str]:
        state = Text(line.state, style=_STYLES[line.state])
        position, remaining = "", ""
        if line.state == "running":
            remaining = _format_duration(self._board.eta(line))
            if line.progress is not None:
                position = _format_position(line.progress)
        elif line.state in ("failed", "killed", "cut"):
            state = Text(f"{line.state}: {line.reason}", style=_STYLES[line.state])
        seed = "—" if line.trial.seed is None else str(line.trial.seed)
        loss = "" if line.loss is None else f"{line.loss:.4f}"
        return [line.trial.fingerprint[:8], line.trial.arm, seed, state, position, loss, remaining]


class PlainDisplay:
    """Prints a line for each event, and regularly the progress of trials."""

    def __init__(self, console: Console, jobs: Sequence[DisplayEntry]) -> None:
        self._board = Board(jobs)
        self._console = console

    def __enter__(self) -> PlainDisplay:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing."""

    def on_event(self, event: JobEvent) -> None:
        """Print an event; progress at most every ten seconds per trial."""
        board = self._board
        line = board.on_event(event)
        passes = line.job.shard is not None
        ended_count = board.count("done", "failed", "killed", "cut", passes=passes)
        total = len(board.select_lines(passes=passes))
        tally = (
            f"[{ended_count}/{total}, {_format_duration(board.overall_eta(passes=passes))} left]"
        )
        match event:
            case JobStarted() if line.job.is_scoring and line.progress is not None:
                pass  # a further step of a started trial
            case JobStarted():
                self._print_line(f"{line.trial.name}: started")
            case JobAnswered():
                self._print_line(f"{line.trial.name}: answered, to be scored")
            case JobFinished():
                self._print_line(
                    f"{line.trial.name}: done in {line.ended_at - line.started_at:.0f} s {tally}"
                )
            case JobFailed(retry_job=Job() as next_job):
                notes = "".join(f"; {note}" for note in next_job.notes[len(event.job.notes) :])
                self._print_line(f"{line.trial.name}: tried again: {event.reason}{notes}")
            case JobFailed(cause="stopped"):
                self._print_line(f"{line.trial.name}: KILLED: {event.reason}")
            case JobFailed(reason=reason):
                self._print_line(f"{line.trial.name}: FAILED: {reason} {tally}")
            case JobStoppedEarly(reason=reason):
                self._print_line(f"{line.trial.name}: {reason} {tally}")
            case JobProgressed(progress=progress) if progress.phase != "start":
                now = time.monotonic()
                if now - line.printed_at >= PLAIN_INTERVAL:
                    line.printed_at = now
                    loss = "" if line.loss is None else f", loss {line.loss:.4f}"
                    position = _format_position(progress)
                    remaining = _format_duration(board.eta(line))
                    self._print_line(
                        f"{line.trial.name}: {position}{loss}, {remaining} left {tally}"
                    )

    def _print_line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def make_display(console: Console, jobs: Sequence[DisplayEntry]) -> Display:
    """Return the live table on a terminal, plain lines elsewhere."""
    return (LiveDisplay if console.is_terminal else PlainDisplay)(console, jobs)


def _format_position(progress: Progress) -> str:
    """Return a trial's phase and progress, with the rate of its answers if it has one."""
    position = f"{progress.phase} {progress.done}/{progress.total}"
    for name, unit in (("items_per_second", "/s"), ("tokens_per_second", " tokens/s")):
        if (rate := progress.figures.get(name)) is not None:
            position += f", {rate:.3g}{unit}"
    return position


def _format_duration(seconds: float | None) -> str:
    """Format a duration; `?` for None."""
    if seconds is None:
        return "?"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {remainder:02d} s" if minutes else f"{remainder} s"
