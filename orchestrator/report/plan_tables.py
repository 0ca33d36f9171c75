"""A study's plan on the terminal: what would run, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.training.store.folder import store_folder
from chip_core.training.store.room import gigabytes
from orchestrator.ledger import Ledger, TrialRecord
from orchestrator.passes import PlannedPass, cache_folder, plan_passes
from orchestrator.plan import Plan, Trial
from orchestrator.report.evaluation_plan import evaluation_lines
from orchestrator.report.summary import study_metrics
from orchestrator.report.units import shown, shown_scale
from orchestrator.report.words import metric_title, plain


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
    yield from evaluation_lines(plan, ledger)
    for arm in plan.arms:
        if len(arm.cells) > 1:
            yield Text(
                f"one trial for {len(arm.cells)} cells: {arm.name}: {'; '.join(arm.reasons)}"
            )
    for caution in dict.fromkeys(arm.trials[0].config.objective.caution for arm in plan.arms):
        if caution is not None:
            yield Text(f"caution: {caution}", style="yellow")


def pass_table(passes: Sequence[PlannedPass]) -> Table:
    """Return every reference pass of the trials to be trained, with its size and its state."""
    table = Table(box=None, pad_edge=False)
    for title in ("reference pass", "samples", "size", "state", "trials"):
        table.add_column(title, justify="right" if title in ("samples", "size") else "left")
    for planned in passes:
        size = "?" if planned.bytes is None else gigabytes(planned.bytes)
        about = "" if planned.state == "cached" or planned.bytes is None else "about "
        table.add_row(
            Text(planned.one.name),
            "?" if planned.samples is None else str(planned.samples),
            "—" if planned.state == "in the step" else f"{about}{size}",
            planned.state,
            str(len(planned.trials)),
        )
    return table


def pass_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Say which reference passes a run would make and read; nothing where it has none."""
    passes = plan_passes(plan, Ledger(workdir), workdir)
    if passes:
        yield pass_table(passes)


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
    scale = 1.0
    if primary is not None:
        info = study_metrics(plan)[primary.metric]
        scale = shown_scale(info)
        table.add_column(metric_title(primary.metric, shown(info)), justify="right")
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
            cells.append("—" if value is None else plain(scale * value))
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
    passes = plan_passes(plan, ledger, workdir)
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
        "passes": [
            {
                "pass": planned.one.name,
                "hash": store_folder(cache_folder(workdir), planned.one.key).name,
                "samples": planned.samples,
                "bytes": planned.bytes,
                "state": planned.state,
                "trials": len(planned.trials),
            }
            for planned in passes
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
