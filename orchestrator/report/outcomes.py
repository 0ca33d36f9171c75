"""Load the item outcomes of a study's trials for the statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chip_core.evaluation.task import MetricInfo, metric_name
from chip_core.utils.errors import warn_once
from orchestrator.analysis import MetricResults, StudyArm, StudyResults
from orchestrator.analysis.values import Array
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.report.units import shown_unit_scale, to_shown_unit
from orchestrator.state.ledger import Ledger

#: item -> (numerator, denominator)
ItemOutcomes = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """A trial's value and item outcomes on one metric."""

    value: float  # computed by the benchmark's protocol
    items: ItemOutcomes | None  # None if the item outcomes are missing


#: fingerprint -> metric -> scores; undefined metrics are left out
StudyScores = Mapping[str, Mapping[str, TrialScore]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedScores:
    """One metric, as input of the statistics."""

    results: StudyResults
    items: tuple[str, ...]  # the units, in the order of the values' columns; may be empty
    dropped: int  # number of items left out, since a trial lacks them


def load_scores(plan: Plan, ledger: Ledger, storage: Path) -> StudyScores:
    """Return the available scores of every trial of a plan."""
    scores: dict[str, Mapping[str, TrialScore]] = {
        trial.fingerprint: _load_trial_scores(trial, ledger, storage) for trial in plan.trials
    }
    # Trials that cannot run have none.
    return scores | {
        trial.fingerprint: {}
        for arm in plan.arms
        for trial in arm.trials
        if trial.blocked is not None
    }


def build_compared_scores(
    plan: Plan, study_scores: StudyScores, metric: str, info: MetricInfo
) -> ComparedScores | None:
    """Return the input of the statistics for a metric; None if the baseline has no figures.

    Seeds without the figure are left out of their arm, and arms without such a seed out of the
    study. Items that any trial lacks are left out of all. If a trial has no item outcomes, or a
    denominator over them is 0, the trials' figures are compared with items treated as fixed.
    Values are in the shown unit; `info` is in the scorer's.
    """
    arms: list[tuple[Arm, list[tuple[int, TrialScore]]]] = []
    for arm in plan.arms:
        seed_scores = [
            (trial.seed, study_scores[trial.fingerprint][metric])
            for trial in sorted(arm.trials, key=lambda trial: trial.seed or 0)
            if trial.seed is not None and metric in study_scores[trial.fingerprint]
        ]
        if seed_scores:
            arms.append((arm, seed_scores))
    if not any(arm.baseline for arm, _ in arms):
        return None
    rows = [[scores for _, scores in seed_scores] for _, seed_scores in arms]
    items, dropped = _shared_items(rows)
    deltas = {entry.metric: entry.smallest_difference for entry in plan.study.declared_metrics}
    results = StudyResults(
        arms=tuple(
            StudyArm(
                name=arm.name,
                cells=arm.cells,
                seeds=tuple(seed for seed, _ in seed_scores),
                placebo=arm.placebo,
            )
            for arm, seed_scores in arms
        ),
        baseline=dict(plan.study.baseline),
        metrics={metric: _metric_results(info, rows, items, deltas.get(metric))},
        exploratory=plan.study.exploratory,
    )
    return ComparedScores(results=results, items=tuple(items), dropped=dropped)


def _load_trial_scores(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, TrialScore]:
    record = ledger[trial.fingerprint]
    scores: dict[str, TrialScore] = {}
    for key, fingerprint in trial.evaluations.items():
        if fingerprint not in record.evaluations:
            continue
        scored = record.evaluations[fingerprint]
        side, _, benchmark = key.partition("/")
        prefix = metric_name("select" if side == "select" else "report", benchmark, "")
        outcomes = _item_outcomes(storage / scored.folder / scored.evaluation.scores)
        for name, value in scored.evaluation.metrics.items():
            items = outcomes.get(name.removeprefix(prefix))
            scores[name] = TrialScore(value=value, items=items)
    return scores


def _item_outcomes(file: Path) -> dict[str, ItemOutcomes]:
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


def _shared_items(rows: Sequence[Sequence[TrialScore]]) -> tuple[list[str], int]:
    """Return the items that all trials have, and the number of those that only some have.

    They are `[], 0` if a trial has no items or its ratio over the shared ones is undefined.
    """
    sets = [None if scores.items is None else set(scores.items) for row in rows for scores in row]
    item_sets = [items for items in sets if items is not None]
    if len(item_sets) < len(sets):
        return [], 0
    shared = sorted(set.intersection(*item_sets))
    # An official figure may exist even where the ratio of sums is undefined.
    all_outcomes = [scores.items or {} for row in rows for scores in row]
    if not all(sum(outcomes[item][1] for item in shared) > 0 for outcomes in all_outcomes):
        return [], 0
    return shared, len(set.union(*item_sets)) - len(shared)


def _metric_results(
    info: MetricInfo,
    rows: Sequence[Sequence[TrialScore]],
    items: Sequence[str],
    smallest_difference: float | None,
) -> MetricResults:
    def stack_part(index: int) -> tuple[Array, ...]:
        return tuple(
            np.array([[(scores.items or {})[item][index] for item in items] for scores in row])
            for row in rows
        )

    if not items:
        scale = shown_unit_scale(info)
        figures = tuple(np.array([scale * scores.value for scores in row]) for row in rows)
        return MetricResults(
            goal=info.goal, figures=figures, smallest_difference=smallest_difference
        )
    return MetricResults(
        goal=info.goal,
        numerators=stack_part(0),
        denominators=stack_part(1),
        scale=100.0 if to_shown_unit(info).unit == "percent" else 1.0,
        smallest_difference=smallest_difference,
    )
