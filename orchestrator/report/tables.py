"""A study on the terminal: what would run, how far it is, what it came to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.ledger import Ledger, TrialRecord
from orchestrator.plan import Plan, Trial
from orchestrator.report.files import cell_text, column_title, notes, seeds_text
from orchestrator.report.summary import Figure, Outcome, Summary

METRICS_ABREAST = 4  # columns of figures that fit a terminal of 80


def plan_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Say what a run would do."""
    study, ledger = plan.study, Ledger(workdir)
    yield Text(f"study {study.name}", style="bold")
    if study.question:
        yield Text(study.question)
    cells = sum(len(arm.cells) for arm in plan.arms)
    trained = [trial for trial in plan.trials if not trial.untrained]
    done = sum(ledger[trial.fingerprint].done(trial) for trial in trained)
    line = f"{cells} cells, {len(plan.arms)} arms, seeds {' '.join(map(str, study.seeds))}: "
    line += f"{len(trained)} trials, {done} done, {len(trained) - done} to run"
    if not ledger[plan.base.fingerprint].done(plan.base):
        line += ", and the untrained model to score"
    yield Text(line)
    for arm in plan.arms:
        if len(arm.cells) > 1:
            yield Text(
                f"one trial for {len(arm.cells)} cells: {arm.name}: {'; '.join(arm.reasons)}"
            )
    for caution in dict.fromkeys(arm.trials[0].config.objective.caution for arm in plan.arms):
        if caution is not None:
            yield Text(f"caution: {caution}", style="yellow")


def status_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Say how far a study is."""
    ledger = Ledger(workdir)
    states = [state(trial, ledger[trial.fingerprint]) for trial in plan.trials]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    yield Text(f"study {plan.study.name}: {counts}", style="bold")


def trial_table(plan: Plan, workdir: Path) -> Table:
    """Return every trial with its state and main figure."""
    ledger = Ledger(workdir)
    primary = plan.study.primary
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "arm", "seed", "state", "attempts"):
        table.add_column(title)
    if primary is not None:
        table.add_column(primary.metric, justify="right")
    for trial in plan.trials:
        record = ledger[trial.fingerprint]
        cells = [
            trial.fingerprint[:8],
            trial.arm,
            "—" if trial.seed is None else str(trial.seed),
            state(trial, record),
            str(record.attempts or ""),
        ]
        if primary is not None:
            value = record.metrics(trial).get(primary.metric)
            cells.append("—" if value is None else f"{value:.2f}")
        table.add_row(*map(Text, cells))
    return table


def state(trial: Trial, record: TrialRecord) -> str:
    """Return a trial's state in words."""
    if record.done(trial):
        return "done"
    if record.failure is not None:
        return f"failed: {record.failure}"
    if record.model is not None or (trial.untrained and record.evaluations):
        return f"to score: {', '.join(record.missing(trial))}"
    return "to run"


def plan_json(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Return plan and state as plain data."""
    ledger = Ledger(workdir)
    return {
        "study": plan.study.name,
        "question": plan.study.question,
        "recipe": plan.study.recipe,
        "seeds": list(plan.study.seeds),
        "arms": [
            {
                "arm": arm.name,
                "cells": [dict(cell) for cell in arm.cells],
                "reasons": list(arm.reasons),
                "baseline": arm.baseline,
            }
            for arm in plan.arms
        ],
        "trials": [
            {
                "fingerprint": trial.fingerprint,
                "arm": trial.arm,
                "seed": trial.seed,
                "state": state(trial, ledger[trial.fingerprint]),
                "attempts": ledger[trial.fingerprint].attempts,
                "metrics": ledger[trial.fingerprint].metrics(trial),
            }
            for trial in plan.trials
        ],
    }


def summary_lines(summary: Summary) -> Iterator[RenderableType]:
    """Return the study's table and what has to be known of it."""
    metrics = list(summary.metrics)
    for start in range(0, len(metrics), METRICS_ABREAST):
        yield _summary_table(summary, metrics[start : start + METRICS_ABREAST])
    for note in notes(summary):
        yield Text(note, style="dim")


def _summary_table(summary: Summary, metrics: list[str]) -> Table:
    """Return arms × metrics; below each figure its difference and the interval of that."""
    title = Text(summary.plan.study.name, style="bold")
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("\narm", min_width=15)
    for metric in metrics:
        benchmark, _, rest = column_title(summary, metric).rpartition("/")
        table.add_column(f"{benchmark}/\n{rest}", justify="right", no_wrap=True)
    for row in summary.rows:
        name = Text(row.name)
        if row.arm is not None:
            seeds = f"\n{'baseline, ' if row.arm.baseline else ''}n = {seeds_text(row)}"
            name.append(seeds, style="dim")
        cells = [_stacked(row.figures.get(metric)) for metric in metrics]
        table.add_row(name, *cells)
        table.add_row()
    return table


def _stacked(figure: Figure | None) -> Text:
    """Return a figure over its difference over the interval."""
    if figure is None:
        return Text("—")
    main, _, rest = cell_text(figure).partition(" (")
    difference, _, interval = rest.removesuffix(")").partition(" ")
    text = Text(main)
    if difference:
        text.append(f"\n{difference}\n{interval}", style="dim")
    return text


def result_lines(outcome: Outcome, workdir: Path, tracking: str) -> Iterator[RenderableType]:
    """Say what a run came to and where everything lies."""
    yield from summary_lines(outcome.summary)
    name = outcome.summary.plan.study.name
    for trial, reason in outcome.failed.items():
        yield Text(f"FAILED {trial}: {reason}", style="bold red")
    if outcome.interrupted:
        yield Text(f"stopped; go on with: chip-ablate run {name} --workdir {workdir}")
    elif outcome.executed == 0:
        yield Text("nothing to run: everything was done before")
    for path in outcome.report:
        yield Text(f"report: {path}")
    yield Text(f"runs: {tracking}  (see them: chip-ablate ui --workdir {workdir})")
