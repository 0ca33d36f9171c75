"""Load the item outcomes of a study's trials for the statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chip_core.evaluation.task import MetricInfo, metric_name
from chip_core.utils.errors import warn_once
from orchestrator.analysis import MetricResults, StudyArm, StudyResults
from orchestrator.analysis.values import Array
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.report.units import shown, shown_scale
from orchestrator.state.ledger import Ledger

#: item -> (numerator, denominator)
Outcomes = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A trial's value and item outcomes on one metric."""

    value: float  # computed by the benchmark's protocol
    items: Outcomes | None  # None if the item outcomes are missing


#: fingerprint -> metric -> scores; undefined metrics are left out
Loaded = Mapping[str, Mapping[str, Scores]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedScores:
    """One metric, as input of the statistics."""

    results: StudyResults
    items: tuple[str, ...]  # the units, in the order of the values' columns; may be empty
    dropped: int  # number of items left out, since a trial lacks them


def load_scores(plan: Plan, ledger: Ledger, storage: Path) -> Loaded:
    """Return the available scores of every trial of a plan."""
    found: dict[str, Mapping[str, Scores]] = {
        trial.fingerprint: _scores(trial, ledger, storage) for trial in plan.trials
    }
    # Trials that cannot run have none.
    return found | {
        trial.fingerprint: {}
        for arm in plan.arms
        for trial in arm.trials
        if trial.blocked is not None
    }


def compare_scores(
    plan: Plan, loaded: Loaded, metric: str, info: MetricInfo
) -> ComparedScores | None:
    """Return the input of the statistics for a metric; None if the baseline has no figures.

    Seeds without the figure are left out of their arm, and arms without such a seed out of the
    study. Items that any trial lacks are left out of all. If a trial has no item outcomes, or a
    denominator over them is 0, the trials' figures are compared with items treated as fixed.
    Values are in the shown unit; `info` is in the scorer's.
    """
    arms: list[tuple[Arm, list[tuple[int, Scores]]]] = []
    for arm in plan.arms:
        found = [
            (trial.seed, loaded[trial.fingerprint][metric])
            for trial in sorted(arm.trials, key=lambda trial: trial.seed or 0)
            if trial.seed is not None and metric in loaded[trial.fingerprint]
        ]
        if found:
            arms.append((arm, found))
    if not any(arm.baseline for arm, _ in arms):
        return None
    rows = [[scores for _, scores in found] for _, found in arms]
    items, dropped = _shared_items(rows)
    declared = {entry.metric: entry.smallest_difference for entry in plan.study.declared_metrics}
    results = StudyResults(
        arms=tuple(
            StudyArm(
                name=arm.name,
                cells=arm.cells,
                seeds=tuple(seed for seed, _ in found),
                placebo=arm.placebo,
            )
            for arm, found in arms
        ),
        baseline=dict(plan.study.baseline),
        metrics={metric: _metric_results(info, rows, items, declared.get(metric))},
        exploratory=plan.study.exploratory,
    )
    return ComparedScores(results=results, items=tuple(items), dropped=dropped)


def _scores(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, Scores]:
    record = ledger[trial.fingerprint]
    found: dict[str, Scores] = {}
    for key, fingerprint in trial.evaluations.items():
        if fingerprint not in record.evaluations:
            continue
        scored = record.evaluations[fingerprint]
        side, _, benchmark = key.partition("/")
        outcomes = _item_outcomes(storage / scored.folder / scored.evaluation.scores)
        for name, value in scored.evaluation.metrics.items():
            short = name.removeprefix(metric_name(_side(side), benchmark, ""))
            found[name] = Scores(value=value, items=outcomes.get(short))
    return found


def _side(side: str) -> Any:
    return "select" if side == "select" else "report"


def _item_outcomes(file: Path) -> dict[str, Outcomes]:
    """Return a file's outcomes by metric; empty if it was removed or cannot be read."""
    try:
        return {
            metric["name"]: {
                item["item"]: (item["numerator"], item["denominator"]) for item in metric["items"]
            }
            for metric in json.loads(file.read_bytes())["metrics"]
            if metric["items"]
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        warn_once(f"{file} cannot be read: its items are left out of every comparison")
        return {}


def _shared_items(rows: Sequence[Sequence[Scores]]) -> tuple[list[str], int]:
    """Return the items that all trials have, and the number of those that only some have.

    They are `[], 0` if a trial has no items or its ratio over the shared ones is undefined.
    """
    sets = [None if scores.items is None else set(scores.items) for row in rows for scores in row]
    known = [items for items in sets if items is not None]
    if len(known) < len(sets):
        return [], 0
    shared = sorted(set.intersection(*known))
    if not all(_divides(scores.items or {}, shared) for row in rows for scores in row):
        return [], 0
    return shared, len(set.union(*known)) - len(shared)


def _divides(outcomes: Outcomes, items: Sequence[str]) -> bool:
    """Return whether the ratio of sums is defined. An official figure may exist even if not."""
    return sum(outcomes[item][1] for item in items) > 0


def _metric_results(
    info: MetricInfo,
    rows: Sequence[Sequence[Scores]],
    items: Sequence[str],
    smallest_difference: float | None,
) -> MetricResults:
    def part(which: int) -> tuple[Array, ...]:
        return tuple(
            np.array([[(scores.items or {})[item][which] for item in items] for scores in row])
            for row in rows
        )

    if not items:
        scale = shown_scale(info)
        figures = tuple(np.array([scale * scores.value for scores in row]) for row in rows)
        return MetricResults(
            goal=info.goal, figures=figures, smallest_difference=smallest_difference
        )
    return MetricResults(
        goal=info.goal,
        numerators=part(0),
        denominators=part(1),
        scale=100.0 if shown(info).unit == "percent" else 1.0,
        smallest_difference=smallest_difference,
    )
