"""List the remaining work of a study, each piece with its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chip_core import data as preference_data
from chip_core.config.benchmark import BenchmarkConfig
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.readiness import list_sides
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.reference_cache.folder import shard_count
from chip_core.reference_cache.spec import CacheSpec, build_config, group_specs
from chip_core.results import MODEL
from chip_core.selection.rule import count_select_runs
from chip_core.utils.errors import UserError
from orchestrator.cost.kinds import (
    answer_kind,
    cache_build_kind,
    reference_kind,
    row_kind,
    start_kind,
    training_kind,
)
from orchestrator.plan.plan import BASE_ARM, Plan, Trial
from orchestrator.state.cache_plan import PlannedCache, plan_caches
from orchestrator.state.ledger import Ledger, find_answers
from orchestrator.state.search import assume_recipe_settings


@dataclass(frozen=True, kw_only=True)
class BenchmarkQuestions:
    """Questions of one benchmark that are still to be answered or scored."""

    settings: BenchmarkConfig
    kind: str
    questions: int | None  # None: not known on this machine
    times: int = 1  # a training that is scored on its way asks them again


@dataclass(frozen=True, kw_only=True)
class TrialWork:
    """The remaining work of a trial."""

    trial: Trial
    start: str  # its kind, as the four below
    row: str
    training: str | None  # None: it is trained already, or is the untrained model
    rows: int | None  # of its data; None: not known on this machine
    questions: Mapping[str, BenchmarkQuestions]  # by "report/shapes"
    caches: tuple[CacheSpec, ...] = ()  # the stores that its training reads
    answered: bool = False  # its answers are there: they are scored, without its model

    @property
    def config(self) -> TrialConfig:
        """The trial's configuration."""
        return self.trial.config

    @property
    def arm_label(self) -> str:
        """The name of its arm, as reports show it."""
        return "base (untrained)" if self.trial.arm == BASE_ARM else self.trial.arm

    @property
    def processes(self) -> int:
        """The number of processes: of a training as configured, else one."""
        return 1 if self.training is None else self.config.engine.workers_per_trial


@dataclass(frozen=True, kw_only=True)
class CacheBuildWork:
    """Passes that are built together."""

    group: tuple[PlannedCache, ...]
    config: TrialConfig  # that they are made with
    kind: str
    samples: int | None
    parts: int  # the most that it can be shared out to

    @property
    def name(self) -> str:
        """Display name."""
        return " + ".join(planned.spec.name for planned in self.group)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """All remaining work of a study, in the order of its plan."""

    passes: tuple[CacheBuildWork, ...]
    trials: tuple[TrialWork, ...]
    planned: tuple[PlannedCache, ...]  # every pass, whatever becomes of it


def build_workload(plan: Plan, ledger: Ledger, storage: Path) -> Workload:
    """Return the remaining work of a study. Nothing is computed or written.

    While an arm searches, its choice is unknown: its seeds count with the recipe's settings.
    """
    plan = assume_recipe_settings(plan)
    planned = plan_caches(plan, ledger, storage)
    caches_by_trial: dict[str, list[CacheSpec]] = {}
    for planned_cache in planned:
        if planned_cache.state != "in the step":
            for fingerprint in planned_cache.trials:
                caches_by_trial.setdefault(fingerprint, []).append(planned_cache.spec)
    question_counts = count_questions(plan)

    @cache
    def rows(data: str) -> int | None:
        return preference_data.count_rows(DataConfig.model_validate_json(data))

    trials = [
        _trial_work(
            trial,
            ledger,
            storage,
            tuple(caches_by_trial.get(trial.fingerprint, ())),
            question_counts,
            rows,
        )
        for trial in plan.trials
        if not ledger[trial.fingerprint].is_done(trial)
        and not ledger[trial.fingerprint].is_cut(plan.study.early_stopping)
    ]
    return Workload(
        passes=tuple(_build_works(planned)), trials=tuple(trials), planned=tuple(planned)
    )


def training_steps(config: TrialConfig, rows: int | None) -> int | None:
    """Return how many updates a training makes; None where that is not known."""
    settings = config.training
    if config.pairs.rounds:
        rows = round_prompts(config, rows)
    if rows is None:
        return None
    steps = rows // settings.batch_size * settings.epochs
    steps = steps if settings.max_steps is None else min(steps, settings.max_steps)
    return steps * (config.pairs.rounds or 1)


def round_prompts(config: TrialConfig, rows: int | None) -> int | None:
    """Return how many prompts a round samples; None where that is not known.

    A prompt gives one pair at most: what has to be dropped is known once it is sampled.
    """
    prompts = config.pairs.prompts
    return prompts if rows is None else rows if prompts is None else min(prompts, rows)


def _trial_work(
    trial: Trial,
    ledger: Ledger,
    storage: Path,
    caches: tuple[CacheSpec, ...],
    question_counts: Mapping[str, int | None],
    count_rows: Callable[[str], int | None],
) -> TrialWork:
    config, record = trial.config, ledger[trial.fingerprint]
    answered = find_answers(trial, record, storage) is not None
    trained = record.model is not None and (storage / record.model / MODEL).is_dir()
    training, rows = None, None
    missing = set(record.missing_evaluations(trial))
    if not trial.untrained and not trained and not answered:
        missing = set(trial.evaluations)  # trained anew: everything is scored
        features = any(spec.kind == "features" for spec in caches)
        training = training_kind(config, reference_kind(config, caches), features=features)
        rows = count_rows(config.data.model_dump_json())
    trial_questions = {
        f"{side}/{settings.name}": BenchmarkQuestions(
            settings=settings,
            kind=answer_kind(config, settings),
            questions=question_counts[f"{side}/{settings.name}"],
            times=1
            if training is None or side != "select"
            else count_select_runs(config, training_steps(config, rows)),
        )
        for side, settings in list_sides(config.benchmarks)
        if f"{side}/{settings.name}" in missing
    }
    return TrialWork(
        trial=trial,
        start=start_kind(config),
        row=row_kind(config),
        training=training,
        rows=rows,
        questions=trial_questions,
        caches=caches,
        answered=answered,
    )


def _build_works(planned: list[PlannedCache]) -> list[CacheBuildWork]:
    by_key = {
        planned_cache.spec.key: planned_cache
        for planned_cache in planned
        if planned_cache.state == "to make"
    }
    works = []
    for group in group_specs([planned_cache.spec for planned_cache in by_key.values()]):
        group_caches = tuple(by_key[spec.key] for spec in group)
        config = build_config(
            [(planned_cache.spec, planned_cache.config) for planned_cache in group_caches]
        )
        samples = group_caches[0].samples
        works.append(
            CacheBuildWork(
                group=group_caches,
                config=config,
                kind=cache_build_kind(config, group),
                samples=samples,
                parts=1 if samples is None else max(1, shard_count(samples)),
            )
        )
    return works


def count_questions(plan: Plan) -> dict[str, int | None]:
    """Return how many questions each benchmark asks a model, by "report/shapes"."""
    counts: dict[str, int | None] = {}
    for side, settings in list_sides(plan.study.benchmarks):
        key = f"{side}/{settings.name}"
        counts[key] = None
        benchmark = find_benchmark(settings.name)
        if isinstance(benchmark, ExternalBenchmark):
            continue
        try:
            counts[key] = len(select_items(side, settings, benchmark, plan.data_paths)[0])
        except UserError:
            continue
    return counts
