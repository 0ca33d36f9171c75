"""Print a study's results on the terminal, and the commands to continue with."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.formatting import format_count
from orchestrator.report.results import Results, ResultsTable, RunOutcome
from orchestrator.tracking.address import redact_uri
from orchestrator.tracking.views import PendingRuns


def report_lines(results: Results, files: Sequence[Path]) -> Iterator[RenderableType]:
    """Yield the answer, the path of the report, the tables and their notes."""
    yield Text(results.answer, style="bold")
    if files:
        yield _unwrapped_text(f"report: {files[0]}")
    yield Text("")
    for grid in results.grids:
        yield _render_results_table(results.study, grid)
    for note in results.notes:
        yield Text(note, style="dim")


def result_lines(
    outcome: RunOutcome, workdir: Path, tracking: str, command: str, sync: str
) -> Iterator[RenderableType]:
    """Yield the results of a run, and where its report and MLflow runs are.

    Args:
        outcome: outcome of the run.
        workdir: the work directory.
        tracking: the tracking URI.
        command: the command that continues the run.
        sync: the command that sends what is not yet tracked.
    """
    yield from report_lines(outcome.results, outcome.report)
    for trial, reason in outcome.failed.items():
        yield Text(f"FAILED {trial}: {reason}", style="bold red")
    if outcome.interrupted or outcome.limit:
        reason_text = f" at {outcome.limit}" if outcome.limit else ""
        remaining = format_count(outcome.results.left, "trial")
        yield _unwrapped_text(f"stopped{reason_text}: {remaining} left; continue with: {command}")
    elif outcome.drain_reason is not None:
        yield _unwrapped_text(
            f"no new trials were started: {outcome.drain_reason}; continue with: {command}"
        )
    elif outcome.executed == 0:
        yield Text("nothing to run: everything is done already")
    ui_command = shlex.join(["chip-ablate", "ui", "--workdir", str(workdir)])
    yield _unwrapped_text(f"runs: {tracking}  (see them: {ui_command})")
    for line in tracking_lines(outcome.waiting, sync, outcome.rejected_names):
        yield _unwrapped_text(line)
    if outcome.comparison_url is not None:
        yield _unwrapped_text(f"arms side by side: {outcome.comparison_url}")


def _unwrapped_text(text: str) -> Text:
    return Text(text, no_wrap=True)


def _render_results_table(study: str, grid: ResultsTable) -> Table:
    table = Table(
        title=Text(study, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("\narm", min_width=15)
    for head in grid.heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in grid.rows:
        table.add_row(*(Text.assemble(*cell) for cell in row))
        table.add_row()
    return table


_MAX_NAMES = 3  # rejected names that are listed
_DEFAULT_WORKDIR = Path("chip-runs")  # the command's own default


def resume_command(arguments: Sequence[str] | None) -> str:
    """Return the given command, which also continues the run, without secrets in addresses."""
    if arguments is None:
        return "the same command"
    return shlex.join(["chip-ablate", *(redact_uri(argument) for argument in arguments)])


def sync_command(study: str, workdir: Path, tracking_uri: str | None) -> str:
    """Return the command that sends what is not yet tracked, without a password."""
    arguments = ["chip-ablate", "sync", study]
    if workdir != _DEFAULT_WORKDIR:
        arguments += ["--workdir", str(workdir)]
    if tracking_uri is not None:
        arguments += ["--tracking-uri", redact_uri(tracking_uri)]
    return shlex.join(arguments)


def tracking_lines(
    waiting: PendingRuns | None, sync: str, refused: Mapping[str, str] | None = None
) -> list[str]:
    """Return whether everything is tracked, else what is not, why, and the command to send it."""
    rejected = _rejected_names(refused) if refused else None
    if waiting is None:
        return ["all tracked" if rejected is None else f"all tracked but {rejected}"]
    untracked = [format_count(len(waiting.trials), "trial")] if waiting.trials else []
    untracked += ["the study's own run"] if waiting.study else []
    return [
        f"not tracked yet: {' and '.join(untracked)}: {waiting.reason}",
        f"send it: {sync}",
        *([] if rejected is None else [f"not tracked: {rejected}"]),
    ]


def _rejected_names(refused: Mapping[str, str]) -> str:
    """Return the first few names that MLflow rejects, with the reason."""
    names = ", ".join(list(refused)[:_MAX_NAMES])
    rest_text = f" and {len(refused) - _MAX_NAMES} more" if len(refused) > _MAX_NAMES else ""
    reason = next(iter(refused.values()))
    return f"what MLflow rejects: {names}{rest_text} ({reason}): it is in the report"


def untracked_to_json(waiting: PendingRuns | None, sync: str) -> dict[str, Any] | None:
    """Return what is not yet tracked as plain data; None if everything is."""
    if waiting is None:
        return None
    return {"trials": list(waiting.trials), "reason": waiting.reason, "command": sync}
