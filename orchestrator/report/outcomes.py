"""Item outcomes of a study's trials, as the statistics take them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from chip_core.evaluation.task import MetricInfo, metric_name
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan, Trial
from orchestrator.statistics import MetricResults, StudyArm, StudyResults
from orchestrator.statistics.values import Array

#: item -> (numerator, denominator)
Outcomes = Mapping[str, tuple[float, float]]


def study_results(
    plan: Plan, ledger: Ledger, storage: Path, metrics: Mapping[str, MetricInfo]
) -> StudyResults | None:
    """Return what the statistics compare; None where the baseline has no figures yet.

    Seeds without figures are left out of their arm, arms without seeds of the study; items that
    any trial lacks are left out of all.
    """
    loaded = {
        trial.fingerprint: load_outcomes(trial, ledger, storage)
        for arm in plan.arms
        for trial in arm.trials
    }
    arms = []
    trials: list[list[Trial]] = []
    for arm in plan.arms:
        done = sorted(
            (trial for trial in arm.trials if loaded[trial.fingerprint]),
            key=lambda trial: trial.seed or 0,
        )
        if done:
            seeds = tuple(trial.seed for trial in done if trial.seed is not None)
            arms.append(StudyArm(name=arm.name, cells=arm.cells, seeds=seeds))
            trials.append(done)
    if not any(plan.baseline.name == arm.name for arm in arms):
        return None
    found: dict[str, MetricResults] = {}
    for metric, info in metrics.items():
        rows = [[loaded[trial.fingerprint].get(metric) for trial in done] for done in trials]
        everyone = [row for arm_rows in rows for row in arm_rows]
        if any(row is None for row in everyone):
            continue  # undefined somewhere: no comparison of this metric
        items = sorted(set.intersection(*(set(row) for row in everyone if row is not None)))
        if items and all(row is None or _divides(row, items) for row in everyone):
            found[metric] = _metric_results(info, rows, items)
    return StudyResults(arms=tuple(arms), baseline=dict(plan.study.baseline), metrics=found)


def load_outcomes(trial: Trial, ledger: Ledger, storage: Path) -> dict[str, Outcomes]:
    """Return a trial's item outcomes by full metric name; empty where it has no figures."""
    record = ledger[trial.fingerprint]
    outcomes: dict[str, Outcomes] = {}
    for key, mark in trial.evaluations.items():
        if mark not in record.evaluations:
            continue
        side, _, benchmark = key.partition("/")
        scored = record.evaluations[mark]
        file = storage / scored.folder / scored.evaluation.scores
        for metric in json.loads(file.read_text(encoding="utf-8"))["metrics"]:
            if metric["value"] is None:
                continue
            name = metric_name(
                "select" if side == "select" else "report", benchmark, metric["name"]
            )
            outcomes[name] = {
                item["item"]: (item["numerator"], item["denominator"]) for item in metric["items"]
            }
    return outcomes


def _divides(row: Outcomes, items: list[str]) -> bool:
    """Return whether a ratio of sums is defined; an official figure can be there all the same."""
    return sum(row[item][1] for item in items) > 0


def _metric_results(
    info: MetricInfo, rows: list[list[Outcomes | None]], items: list[str]
) -> MetricResults:
    def part(which: int) -> tuple[Array, ...]:
        return tuple(
            np.array([[row[item][which] for item in items] for row in arm if row is not None])
            for arm in rows
        )

    return MetricResults(
        goal=info.goal,
        numerators=part(0),
        denominators=part(1),
        scale=100.0 if info.unit == "percent" else 1.0,
    )
