"""Summarize a study as data: arms × metrics."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chip_core.evaluation.items import find_benchmark
from chip_core.evaluation.readiness import list_sides
from chip_core.evaluation.task import MetricInfo, metric_name
from orchestrator.analysis import (
    Comparison,
    Contrast,
    compare_with_baseline,
    interactions,
    main_effects,
)
from orchestrator.cost.budget import trimmed_notes
from orchestrator.plan.plan import Arm, Plan, Trial
from orchestrator.report.outcomes import ComparedScores, StudyScores, build_compared_scores
from orchestrator.report.scoring import scoring_notes
from orchestrator.report.units import shown_unit_scale, to_shown_unit
from orchestrator.report.unread_counts import UnreadCount, count_unread
from orchestrator.state.ledger import Ledger
from orchestrator.study.early_stopping import EarlyStopping

TrialState = Literal["done", "failed", "killed", "cut", "missing"]
MetricRole = Literal["primary", "secondary"]
UNTRAINED = "base (untrained)"


@dataclass(frozen=True, kw_only=True)
class ArmMetric:
    """One metric of one arm over its seeds."""

    values: Mapping[int | None, float]  # seed -> value as shown; None is the untrained model
    comparison: Comparison | None = None  # with the baseline; None for the baseline itself

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over the seeds; None for one."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None

    @property
    def contrast(self) -> Contrast | None:
        """Difference from the baseline with its variance; None if it is not estimable."""
        return None if self.comparison is None else self.comparison.contrast

    @property
    def difference(self) -> float | None:
        """Difference from the baseline in the shown unit, computed from item outcomes."""
        return None if self.contrast is None else self.contrast.estimate

    @property
    def interval(self) -> tuple[float, float] | None:
        """Marginal 95 % interval of the difference."""
        return None if self.contrast is None else self.contrast.interval


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """An arm, or the untrained model."""

    name: str
    arm: Arm | None  # None: the untrained model
    states: Mapping[int | None, TrialState]  # by seed
    figures: Mapping[str, ArmMetric]  # by metric; metrics without a value are left out

    def comparison(self, metric: str | None) -> Comparison | None:
        """Return the comparison with the baseline on a metric, if there is one."""
        figure = None if metric is None else self.figures.get(metric)
        return None if figure is None else figure.comparison


@dataclass(frozen=True, kw_only=True)
class MetricEffects:
    """The factors' effects on a metric."""

    main: tuple[Comparison, ...]
    interactions: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A study's figures, comparisons and notes."""

    plan: Plan
    #: in the shown units, in the table's order: primary, secondary, others
    metrics: Mapping[str, MetricInfo]
    scales: Mapping[str, float]  # by metric: factor from the scorer's unit to the shown one
    rows: Sequence[ArmRow]  # the untrained model first
    compared: Mapping[str, ComparedScores]  # by metric, if the baseline has it
    effects: Mapping[str, MetricEffects]  # of the declared metrics
    former_trials: int  # number of trials of former cells: in the ledger, not reported
    scoring: Sequence[str] = ()  # notes on how figures were made
    left_out: Sequence[str] = ()  # notes on trials left out for a budget
    #: for benchmarks with answers or judge's replies that could not be read
    unread: Sequence[UnreadCount] = ()

    @property
    def missing(self) -> list[str]:
        """The missing trials: `dpo, frozen, seed 2 (failed)`."""
        return [
            f"{row.name}{'' if seed is None else f', seed {seed}'} ({state})"
            for row in self.rows
            for seed, state in row.states.items()
            if state != "done"
        ]

    @property
    def remaining(self) -> int:
        """Number of trials that are left to run."""
        states = [state for row in self.rows for state in row.states.values()]
        return sum(state in ("missing", "failed", "killed") for state in states)

    @property
    def verdict_metrics(self) -> list[str]:
        """The metrics that get a verdict, the primary first."""
        return [entry.metric for entry in self.plan.study.declared_metrics]

    def role(self, metric: str) -> MetricRole | None:
        """Return the role that the study file declares for a metric."""
        primary = self.plan.study.primary
        if primary is not None and metric == primary.metric:
            return "primary"
        return "secondary" if metric in self.verdict_metrics else None


def build_summary(plan: Plan, ledger: Ledger, scores: StudyScores) -> Summary:
    """Build a study's summary from the ledger and the trials' scores."""
    metrics = study_metrics(plan)
    all_compared = {
        metric: build_compared_scores(plan, scores, metric, info)
        for metric, info in metrics.items()
    }
    compared = {metric: entry for metric, entry in all_compared.items() if entry is not None}
    differences = {
        metric: {entry.name: entry for entry in compare_with_baseline(entry.results, metric)}
        for metric, entry in compared.items()
    }
    scales = {metric: shown_unit_scale(info) for metric, info in metrics.items()}
    rule = plan.study.early_stopping
    rows = [_build_row(UNTRAINED, None, [plan.base], ledger, scales, {}, rule)]
    for arm in plan.arms:
        arm_differences = {metric: by_arm.get(arm.name) for metric, by_arm in differences.items()}
        rows.append(_build_row(arm.name, arm, arm.trials, ledger, scales, arm_differences, rule))
    return Summary(
        plan=plan,
        metrics={metric: to_shown_unit(info) for metric, info in metrics.items()},
        scales=scales,
        rows=rows,
        compared=compared,
        effects={
            entry.metric: MetricEffects(
                main=main_effects(compared[entry.metric].results, entry.metric),
                interactions=interactions(compared[entry.metric].results, entry.metric),
            )
            for entry in plan.study.declared_metrics
            if entry.metric in compared
        },
        former_trials=_count_former_trials(plan, ledger),
        scoring=scoring_notes(plan, ledger),
        left_out=trimmed_notes(plan, ledger),
        unread=count_unread(plan, ledger, untrained=UNTRAINED),
    )


def study_metrics(plan: Plan) -> dict[str, MetricInfo]:
    """Return the metrics of a study's benchmarks by full name, the declared ones first.

    They have the scorers' units.
    """
    study = plan.study
    report_first = sorted(
        list_sides(study.scored_benchmarks), key=lambda benchmark: benchmark[0] != "report"
    )
    infos = {
        metric_name(side, settings.name, metric): info
        for side, settings in report_first
        for metric, info in find_benchmark(settings.name).metrics.items()
    }
    return {**{entry.metric: infos[entry.metric] for entry in study.declared_metrics}, **infos}


def _build_row(
    name: str,
    arm: Arm | None,
    trials: Sequence[Trial],
    ledger: Ledger,
    scales: Mapping[str, float],
    differences: Mapping[str, Comparison | None],
    rule: EarlyStopping | None,
) -> ArmRow:
    values = _seed_values(trials, ledger, scales)
    return ArmRow(
        name=name,
        arm=arm,
        states={trial.seed: _trial_state(trial, ledger, rule) for trial in trials},
        figures={
            metric: ArmMetric(values=values[metric], comparison=differences.get(metric))
            for metric in scales
            if metric in values
        },
    )


def _seed_values(
    trials: Sequence[Trial], ledger: Ledger, scales: Mapping[str, float]
) -> dict[str, dict[int | None, float]]:
    """Return metric -> seed -> value in the shown unit, where available."""
    values: dict[str, dict[int | None, float]] = {}
    for trial in trials:
        for metric, value in ledger[trial.fingerprint].metrics(trial).items():
            values.setdefault(metric, {})[trial.seed] = scales.get(metric, 1.0) * value
    return values


def _trial_state(trial: Trial, ledger: Ledger, rule: EarlyStopping | None) -> TrialState:
    if trial.blocked is not None:
        return "failed" if trial.blocked.failed else "missing"
    record = ledger[trial.fingerprint]
    if record.is_done(trial):
        return "done"
    if record.is_cut(rule):
        return "cut"
    if record.failure is None:
        return "missing"
    return "killed" if record.is_killed else "failed"


def _count_former_trials(plan: Plan, ledger: Ledger) -> int:
    """Count the trials that were trained for this study and are no longer part of it."""
    planned = {trial.fingerprint for trial in plan.trials}
    return sum(
        record.study == plan.study.name and record.model is not None and fingerprint not in planned
        for fingerprint, record in ledger.items()
    )
