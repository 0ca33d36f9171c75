"""What a study came to, as data: arms × metrics. Tables, files and trackers are made from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chip_core.evaluation.task import BENCHMARKS, MetricInfo, metric_name
from orchestrator.ledger import Ledger
from orchestrator.plan import Arm, Plan, Trial

State = Literal["done", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric of one arm over its seeds."""

    values: Mapping[int | None, float]  # seed -> value; None is the untrained model
    difference: float | None  # of the mean, from the baseline's over the seeds both have

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None for one."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm, or the untrained model."""

    name: str
    arm: Arm | None  # None: the untrained model
    states: Mapping[int | None, State]  # by seed
    figures: Mapping[str, Figure]  # by metric; a metric without any value is not there


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A study's table."""

    plan: Plan
    metrics: Mapping[str, MetricInfo]  # in the order of the table, the primary first
    rows: Sequence[Row]

    @property
    def missing(self) -> list[str]:
        """What is not there, in words: `dpo, frozen seed 2 (failed: …)`."""
        return [
            f"{row.name}{'' if seed is None else f', seed {seed}'} ({state})"
            for row in self.rows
            for seed, state in row.states.items()
            if state != "done"
        ]


def summarise(plan: Plan, ledger: Ledger) -> Summary:
    """Return a study's table as the ledger has it."""
    metrics = study_metrics(plan)
    baseline = _values(plan.baseline.trials, ledger)
    rows = [_row("base (untrained)", None, [plan.base], ledger, metrics, {})]
    for arm in plan.arms:
        compared = {} if arm.baseline else baseline
        rows.append(_row(arm.name, arm, arm.trials, ledger, metrics, compared))
    return Summary(plan=plan, metrics=metrics, rows=rows)


def study_metrics(plan: Plan) -> dict[str, MetricInfo]:
    """Return the metrics of a study's benchmarks by full name, the primary first."""
    study = plan.study
    found = {
        metric_name(side, settings.name, metric): info
        for side, chosen in (
            ("report", study.benchmarks.report),
            ("select", study.benchmarks.select),
        )
        for settings in chosen
        for metric, info in BENCHMARKS[settings.name].metrics.items()
    }
    if study.primary is not None:
        return {study.primary.metric: found[study.primary.metric], **found}
    return found


def _row(
    name: str,
    arm: Arm | None,
    trials: Sequence[Trial],
    ledger: Ledger,
    metrics: Mapping[str, MetricInfo],
    baseline: Mapping[int | None, Mapping[str, float]],
) -> Row:
    values = _values(trials, ledger)
    figures: dict[str, Figure] = {}
    for metric in metrics:
        mine = {seed: found[metric] for seed, found in values.items() if metric in found}
        if not mine:
            continue
        shared = [seed for seed in mine if metric in baseline.get(seed, {})]
        difference = (
            statistics.fmean(mine[seed] - baseline[seed][metric] for seed in shared)
            if shared
            else None
        )
        figures[metric] = Figure(values=mine, difference=difference)
    return Row(
        name=name,
        arm=arm,
        states={trial.seed: _state(trial, ledger) for trial in trials},
        figures=figures,
    )


def _values(trials: Sequence[Trial], ledger: Ledger) -> dict[int | None, Mapping[str, float]]:
    return {trial.seed: ledger[trial.fingerprint].metrics(trial) for trial in trials}


def _state(trial: Trial, ledger: Ledger) -> State:
    record = ledger[trial.fingerprint]
    if record.done(trial):
        return "done"
    return "missing" if record.failure is None else "failed"
