"""Print a study's plan and its progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from chip_core.data import asks_of
from chip_core.reference_cache.folder import store_folder
from chip_core.reference_cache.size import gigabytes
from chip_core.selection.rule import selection_words
from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.formatting import metric_title, plain
from orchestrator.report.sections.search_progress import search_json, search_lines
from orchestrator.report.summary import study_metrics
from orchestrator.report.units import shown, shown_scale
from orchestrator.report.writers.mlflow_names import mlflow_name_lines, mlflow_names
from orchestrator.report.writers.plan_evaluation import evaluation_lines
from orchestrator.report.writers.trust_warnings import trust_warning_lines, trust_warnings_json
from orchestrator.state.cache_plan import PlannedCache, cache_folder, plan_caches
from orchestrator.state.integrity import ledger_of
from orchestrator.state.ledger import TrialRecord
from orchestrator.state.search import SearchTrial
from orchestrator.study.design import layout_notes


def plan_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Say what a run would do."""
    study, ledger = plan.study, ledger_of(plan, workdir)
    yield Text(f"study {study.name}", style="bold")
    if study.question:
        yield Text(study.question)
    cells = sum(len(arm.cells) for arm in plan.arms)
    trained = {trial.fingerprint: trial for arm in plan.arms for trial in arm.trials}.values()
    done = sum(ledger[trial.fingerprint].done(trial) for trial in trained)
    line = f"{cells} cells, {len(plan.arms)} arms, seeds {' '.join(map(str, study.seeds))}: "
    line += f"{len(trained)} trials, {done} done, {len(trained) - done} to run"
    if not ledger[plan.base.fingerprint].done(plan.base):
        line += ", and the untrained model to score"
    yield Text(line)
    for note in layout_notes(study):
        yield Text(note)
    yield from _asked_lines(plan)
    for words in dict.fromkeys(selection_words(arm.trials[0].config) for arm in plan.arms):
        if words is not None:
            yield Text(words)
    yield from trust_warning_lines(plan)
    yield from search_lines(plan, ledger)
    yield from evaluation_lines(plan, ledger)
    for arm in plan.arms:
        if len(arm.cells) > 1:
            yield Text(
                f"one trial for {len(arm.cells)} cells: {arm.name}: {'; '.join(arm.reasons)}"
            )
    yield from map(Text, mlflow_name_lines(mlflow_names(plan)))
    for caution in dict.fromkeys(arm.trials[0].config.objective.caution for arm in plan.arms):
        if caution is not None:
            yield Text(f"caution: {caution}", style="yellow")


def _asked_lines(plan: Plan) -> Iterator[Text]:
    """Say what objectives ask of the data's rows beside image, prompt, chosen and rejected."""
    asked: dict[tuple[str, ...], list[str]] = {}
    for arm in plan.arms:
        names = tuple(asks_of(arm.trials[0].config.objective).names)
        if names:
            asked.setdefault(names, []).append(arm.name)
    for names, arms in asked.items():
        yield Text(f"rows are to have {', '.join(names)}: {'; '.join(arms)}")


def cache_table(passes: Sequence[PlannedCache]) -> Table:
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


def cache_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Say which reference passes a run would make and read; nothing where it has none."""
    passes = plan_caches(plan, ledger_of(plan, workdir), workdir)
    if passes:
        yield cache_table(passes)


def status_lines(plan: Plan, workdir: Path) -> Iterator[RenderableType]:
    """Say how far a study is."""
    ledger = ledger_of(plan, workdir)
    states = [state(trial, ledger[trial.fingerprint]) for trial in plan.trials]
    counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
    yield Text(f"study {plan.study.name}: {counts}", style="bold")
    yield from search_lines(plan, ledger)


def trial_table(plan: Plan, workdir: Path) -> Table:
    """Return every trial with its state and main figure."""
    ledger = ledger_of(plan, workdir)
    primary = plan.study.primary
    table = Table(box=None, pad_edge=False)
    for title in ("trial", "arm", "seed", "state", "attempts"):
        table.add_column(title, overflow="fold")
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
    for trial in _held(plan):
        nothing = ["—"] * (primary is not None)
        table.add_row(*map(Text, ("—", trial.arm, str(trial.seed), _waits(trial), "", *nothing)))
    return table


def _held(plan: Plan) -> list[Trial]:
    return [trial for arm in plan.arms for trial in arm.trials if trial.blocked is not None]


def _waits(trial: Trial) -> str:
    assert trial.blocked is not None
    return f"{'failed' if trial.blocked.failed else 'waits'}: {trial.blocked.reason}"


def state(trial: Trial, record: TrialRecord) -> str:
    """Return a trial's state in words."""
    if record.done(trial):
        return "done"
    if record.cut is not None:
        return record.failure or "cut by early stopping"
    if record.failure is not None:
        return f"{'killed' if record.killed else 'failed'}: {record.failure}"
    if record.model is not None or (trial.untrained and record.evaluations):
        missing = record.missing(trial)
        answered = all(trial.evaluations[key] in record.answers for key in missing)
        return f"{'answered, ' if answered else ''}to score: {', '.join(missing)}"
    return "to run"


def plan_json(plan: Plan, workdir: Path) -> dict[str, Any]:
    """Return plan and state as plain data."""
    ledger = ledger_of(plan, workdir)
    passes = plan_caches(plan, ledger, workdir)
    return {
        "study": plan.study.name,
        "question": plan.study.question,
        "recipe": plan.study.recipe,
        "seeds": list(plan.study.seeds),
        "design": plan.study.design,
        "notes": list(layout_notes(plan.study)),
        "trusted": trust_warnings_json(plan),
        "mlflow_names": mlflow_names(plan),
        "arms": [
            {
                "arm": arm.name,
                "cells": [dict(cell) for cell in arm.cells],
                "reasons": list(arm.reasons),
                "baseline": arm.baseline,
                "placebo": arm.placebo,
                "tuned": dict(arm.tuned),
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
        "search": search_json(plan, ledger),
        "trials": [
            {
                "fingerprint": trial.fingerprint,
                "arm": trial.arm,
                "seed": trial.seed,
                "state": state(trial, ledger[trial.fingerprint]),
                "attempts": ledger[trial.fingerprint].attempts,
                "metrics": ledger[trial.fingerprint].metrics(trial),
                "search": _search(trial),
            }
            for trial in plan.trials
        ]
        + [
            {
                "fingerprint": None,
                "arm": trial.arm,
                "seed": trial.seed,
                "state": _waits(trial),
                "attempts": 0,
                "metrics": {},
                "search": None,
            }
            for trial in _held(plan)
        ],
    }


def _search(trial: Trial) -> dict[str, Any] | None:
    """Return whose search a trial is of and what was drawn; None where it is of none."""
    if not isinstance(trial, SearchTrial):
        return None
    return {"of": trial.of, "number": trial.number, "values": dict(trial.values)}
