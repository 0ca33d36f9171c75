"""List the remaining work of a study, each piece with its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from chip_core import data as preference_data
from chip_core.config.benchmark import BenchmarkConfig
from chip_core.config.trial import DataConfig, TrialConfig
from chip_core.evaluation.items import find_benchmark, select_items
from chip_core.evaluation.readiness import sides
from chip_core.evaluation.task import ExternalBenchmark
from chip_core.reference_cache.folder import shard_count
from chip_core.reference_cache.spec import CacheSpec, build_config, group_specs
from chip_core.results import MODEL
from chip_core.selection.rule import count_select_runs
from chip_core.utils.errors import UserError
from orchestrator.cost.kinds import (
    answer_kind,
    cache_build_kind,
    reference_of,
    row_kind,
    start_kind,
    training_kind,
)
from orchestrator.plan.plan import Plan, Trial
from orchestrator.state.cache_plan import PlannedCache, plan_caches
from orchestrator.state.ledger import Ledger, answers_of
from orchestrator.state.search import expected


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
    asked: Mapping[str, BenchmarkQuestions]  # by "report/shapes"
    caches: tuple[CacheSpec, ...] = ()  # the stores that its training reads
    answered: bool = False  # its answers are there: they are scored, without its model

    @property
    def config(self) -> TrialConfig:
        """The trial's configuration."""
        return self.trial.config

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
        return " + ".join(planned.one.name for planned in self.group)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """All remaining work of a study, in the order of its plan."""

    passes: tuple[CacheBuildWork, ...]
    trials: tuple[TrialWork, ...]
    planned: tuple[PlannedCache, ...]  # every pass, whatever becomes of it


def workload(plan: Plan, ledger: Ledger, storage: Path) -> Workload:
    """Return the remaining work of a study. Nothing is computed or written.

    While an arm searches, its choice is unknown: its seeds count with the recipe's settings.
    """
    plan = expected(plan)
    planned = plan_caches(plan, ledger, storage)
    read: dict[str, list[CacheSpec]] = {}
    for each in planned:
        if each.state != "in the step":
            for fingerprint in each.trials:
                read.setdefault(fingerprint, []).append(each.one)
    questions = questions_of(plan)

    @cache
    def rows(data: str) -> int | None:
        return preference_data.count_rows(DataConfig.model_validate_json(data))

    trials = [
        _of_trial(trial, ledger, storage, tuple(read.get(trial.fingerprint, ())), questions, rows)
        for trial in plan.trials
        if not ledger[trial.fingerprint].done(trial)
        and not ledger[trial.fingerprint].is_cut(plan.study.early_stopping)
    ]
    return Workload(passes=tuple(_groups(planned)), trials=tuple(trials), planned=tuple(planned))


def steps_of(config: TrialConfig, rows: int | None) -> int | None:
    """Return how many updates a training makes; None where that is not known."""
    settings = config.training
    if config.pairs.rounds:
        rows = prompts_of(config, rows)
    if rows is None:
        return None
    steps = rows // settings.batch_size * settings.epochs
    steps = steps if settings.max_steps is None else min(steps, settings.max_steps)
    return steps * (config.pairs.rounds or 1)


def prompts_of(config: TrialConfig, rows: int | None) -> int | None:
    """Return how many prompts a round samples; None where that is not known.

    A prompt gives one pair at most: what has to be dropped is known once it is sampled.
    """
    asked = config.pairs.prompts
    return asked if rows is None else rows if asked is None else min(asked, rows)


def _of_trial(
    trial: Trial,
    ledger: Ledger,
    storage: Path,
    caches: tuple[CacheSpec, ...],
    questions: Mapping[str, int | None],
    rows_of: object,
) -> TrialWork:
    config, record = trial.config, ledger[trial.fingerprint]
    answered = answers_of(trial, record, storage) is not None
    trained = record.model is not None and (storage / record.model / MODEL).is_dir()
    training, rows = None, None
    missing = set(record.missing(trial))
    if not trial.untrained and not trained and not answered:
        missing = set(trial.evaluations)  # trained anew: everything is scored
        features = any(one.kind == "features" for one in caches)
        training = training_kind(config, reference_of(config, caches), features=features)
        assert callable(rows_of)
        rows = rows_of(config.data.model_dump_json())
    asked = {
        f"{side}/{settings.name}": BenchmarkQuestions(
            settings=settings,
            kind=answer_kind(config, settings),
            questions=questions[f"{side}/{settings.name}"],
            times=1
            if training is None or side != "select"
            else count_select_runs(config, steps_of(config, rows)),
        )
        for side, settings in sides(config.benchmarks)
        if f"{side}/{settings.name}" in missing
    }
    return TrialWork(
        trial=trial,
        start=start_kind(config),
        row=row_kind(config),
        training=training,
        rows=rows,
        asked=asked,
        caches=caches,
        answered=answered,
    )


def _groups(planned: list[PlannedCache]) -> list[CacheBuildWork]:
    by_key = {each.one.key: each for each in planned if each.state == "to make"}
    found = []
    for group in group_specs([each.one for each in by_key.values()]):
        of_group = tuple(by_key[one.key] for one in group)
        config = build_config([(each.one, each.config) for each in of_group])
        samples = of_group[0].samples
        found.append(
            CacheBuildWork(
                group=of_group,
                config=config,
                kind=cache_build_kind(config, group),
                samples=samples,
                parts=1 if samples is None else max(1, shard_count(samples)),
            )
        )
    return found


def questions_of(plan: Plan) -> dict[str, int | None]:
    """Return how many questions each benchmark asks a model, by "report/shapes"."""
    found: dict[str, int | None] = {}
    for side, settings in sides(plan.study.benchmarks):
        key = f"{side}/{settings.name}"
        found[key] = None
        benchmark = find_benchmark(settings.name)
        if isinstance(benchmark, ExternalBenchmark):
            continue
        try:
            found[key] = len(select_items(side, settings, benchmark, plan.places)[0])
        except UserError:
            continue
    return found
