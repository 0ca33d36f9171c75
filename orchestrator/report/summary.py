"""What a study came to, as data: arms × metrics. Tables, files and trackers are made from it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chip_core.config import BenchmarkConfig
from chip_core.evaluation.asked import find_benchmark
from chip_core.evaluation.task import MetricInfo, Side, metric_name
from orchestrator.ledger import Ledger
from orchestrator.plan import Arm, Plan, Trial
from orchestrator.report.outcomes import study_results
from orchestrator.report.scoring import scoring_notes
from orchestrator.statistics import Contrast, verdicts

State = Literal["done", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric of one arm over its seeds."""

    values: Mapping[int | None, float]  # seed -> value; None is the untrained model
    difference: float | None  # of the mean from the baseline's
    interval: tuple[float, float] | None = None  # of the difference, 95 %
    notes: tuple[str, ...] = ()  # what has to be said beside the interval

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
    scoring: Sequence[str] = ()  # what has to be known of how figures were made

    @property
    def missing(self) -> list[str]:
        """What is not there, in words: `dpo, frozen seed 2 (failed: …)`."""
        return [
            f"{row.name}{'' if seed is None else f', seed {seed}'} ({state})"
            for row in self.rows
            for seed, state in row.states.items()
            if state != "done"
        ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a study ended."""

    summary: Summary
    executed: int  # attempts made now
    failed: Mapping[str, str]  # trial -> reason
    interrupted: bool
    report: Sequence[Path]


def summarise(plan: Plan, ledger: Ledger, storage: Path) -> Summary:
    """Return a study's table as the ledger has it."""
    metrics = study_metrics(plan)
    contrasts = _contrasts(plan, ledger, storage, metrics)
    baseline = {
        metric: statistics.fmean(values.values())
        for metric, values in _values(plan.baseline.trials, ledger).items()
    }
    rows = [_row("base (untrained)", None, [plan.base], ledger, metrics, {}, {})]
    for arm in plan.arms:
        compared = {} if arm.baseline else baseline
        found = contrasts.get(arm.name, {})
        rows.append(_row(arm.name, arm, arm.trials, ledger, metrics, compared, found))
    return Summary(plan=plan, metrics=metrics, rows=rows, scoring=scoring_notes(plan, ledger))


def study_metrics(plan: Plan) -> dict[str, MetricInfo]:
    """Return the metrics of a study's benchmarks by full name, the primary first."""
    study = plan.study
    sides: list[tuple[Side, tuple[BenchmarkConfig, ...]]] = [
        ("report", study.benchmarks.report),
        ("select", study.benchmarks.select),
    ]
    found = {
        metric_name(side, settings.name, metric): info
        for side, chosen in sides
        for settings in chosen
        for metric, info in find_benchmark(settings.name).metrics.items()
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
    baseline: Mapping[str, float],
    contrasts: Mapping[str, Contrast],
) -> Row:
    values = _values(trials, ledger)
    figures: dict[str, Figure] = {}
    for metric in metrics:
        if metric not in values:
            continue
        mine, found = values[metric], contrasts.get(metric)
        difference = None
        if metric in baseline:
            difference = statistics.fmean(mine.values()) - baseline[metric]
        figures[metric] = Figure(
            values=mine,
            difference=difference,
            interval=None if found is None else found.interval,
            notes=() if found is None else found.notes,
        )
    return Row(
        name=name,
        arm=arm,
        states={trial.seed: _state(trial, ledger) for trial in trials},
        figures=figures,
    )


def _contrasts(
    plan: Plan, ledger: Ledger, storage: Path, metrics: Mapping[str, MetricInfo]
) -> dict[str, dict[str, Contrast]]:
    """Return arm -> metric -> its difference from the baseline."""
    results = study_results(plan, ledger, storage, metrics)
    found: dict[str, dict[str, Contrast]] = {}
    if results is not None:
        for metric in results.metrics:
            for comparison in verdicts(results, metric):
                if comparison.contrast is not None:
                    found.setdefault(comparison.name, {})[metric] = comparison.contrast
    return found


def _values(trials: Sequence[Trial], ledger: Ledger) -> dict[str, dict[int | None, float]]:
    """Return metric -> seed -> value, of what is there."""
    values: dict[str, dict[int | None, float]] = {}
    for trial in trials:
        for metric, value in ledger[trial.fingerprint].metrics(trial).items():
            values.setdefault(metric, {})[trial.seed] = value
    return values


def _state(trial: Trial, ledger: Ledger) -> State:
    record = ledger[trial.fingerprint]
    if record.done(trial):
        return "done"
    return "missing" if record.failure is None else "failed"
