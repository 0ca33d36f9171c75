"""Parse and check the `tune:` block of a study file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chip_core.config.benchmark import BenchmarksConfig
from chip_core.config.trial import LARGEST_SEED, SHORTHANDS, TrialConfig
from chip_core.config.validation import explain_errors, find_key_problem, set_key
from chip_core.evaluation.items import find_benchmark
from chip_core.utils.registry import suggest
from orchestrator.study.metrics import Goal, ProblemReporter
from orchestrator.study.model import Factor
from orchestrator.study.search_space import Range, SelectMetric, Tune, Values, find_seed_problem

#: Default seed of a search's draws and trainings. It must not be a seed of the study, since a
#: training of the search is never reported; studies are unlikely to use it.
DEFAULT_SEARCH_SEED = 1000
#: Sections that are not hyper-parameters, and why.
_NOT_TUNABLE = {
    "seed": "the study's own `seeds:` sets it",
    "benchmarks": "every trial is scored on the same benchmarks",
    "evaluation": "answers are generated in the same way for every trial",
    "engine": "it does not change any figure",
    "model": "arms are compared on one model: make it a factor",
    "data": "arms are compared on the same data: make it a factor",
}

FiniteNumber = Annotated[int | float, Field(allow_inf_nan=False)]


class RangeFile(BaseModel):
    """A range of values, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    low: FiniteNumber
    high: FiniteNumber
    log: bool = False

    @model_validator(mode="after")
    def _check_bounds(self) -> RangeFile:
        if self.low >= self.high:
            raise ValueError("low is not below high: give a range")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range begins above 0: raise low")
        return self


class TuneFile(BaseModel):
    """What each arm chooses for itself on `select`, before its seeds run with it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: Annotated[dict[str, RangeFile | list[Any]], Field(min_length=1)]
    metric: str
    goal: Goal | None = None
    trials: Annotated[int, Field(ge=1)] | None = None  # None: all combinations of values
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = DEFAULT_SEARCH_SEED


def parse_tune(  # noqa: PLR0913 (blocks of a study file)
    tune_file: TuneFile | None,
    *,
    benchmarks: BenchmarksConfig,
    goals: Mapping[str, Goal],
    factors: Sequence[Factor],
    seeds: tuple[int, ...],
    base_tree: Mapping[str, Any],
    overrides: Mapping[str, Any],
    report_problem: ProblemReporter,
) -> Tune | None:
    """Return a study's search, and report problems with it to `report_problem`.

    Args:
        tune_file: block of the study file.
        benchmarks: the study's benchmarks.
        goals: the study's metrics and their goals.
        factors: the study's factors.
        seeds: the study's seeds.
        base_tree: the recipe as a tree.
        overrides: keys that the command line sets.
        report_problem: called with (key, problem).
    """
    if tune_file is None:
        return None
    keys = {
        key: _parse_space(key, raw_space, report_problem)
        for key, raw_space in tune_file.keys.items()
    }
    for key, space in keys.items():
        problem = _find_tune_key_problem(key, factors, overrides)
        if problem is not None:
            report_problem(f"tune.keys.{key}", problem)
        elif base_tree:
            _check_values(key, space, base_tree, report_problem)
    metric = _parse_metric(tune_file, benchmarks, goals, report_problem)
    if not benchmarks.report:
        report_problem(
            "tune", "nothing would be reported: add a benchmark under `benchmarks.report`"
        )
    seed_clash = find_seed_problem(tune_file.seed, seeds)
    if seed_clash is not None:
        report_problem(*seed_clash.split(": ", 1))
    tune = Tune(keys=keys, trials=tune_file.trials or 1, metric=metric, seed=tune_file.seed)
    return _resolve_trials(tune, tune_file.trials, report_problem)


def _resolve_trials(tune: Tune, trials: int | None, report_problem: ProblemReporter) -> Tune:
    max_trials = tune.combination_count
    if trials is None and max_trials is None:
        report_problem("tune.trials", "is missing: a range has endless values: set how many to try")
    if trials is not None and max_trials is not None and trials > max_trials:
        report_problem(
            "tune.trials",
            f"{trials} is more than the {max_trials} combinations of values",
        )
    return Tune(
        keys=tune.keys, trials=trials or max_trials or 1, metric=tune.metric, seed=tune.seed
    )


def _parse_space(
    key: str, raw_space: RangeFile | list[Any], report_problem: ProblemReporter
) -> Values | Range:
    if isinstance(raw_space, RangeFile):
        return Range(low=raw_space.low, high=raw_space.high, log=raw_space.log)
    if not raw_space:
        report_problem(f"tune.keys.{key}", "has no values: give at least one")
    repeated = [value for index, value in enumerate(raw_space) if value in raw_space[:index]]
    if repeated:
        report_problem(f"tune.keys.{key}", f"{repeated[0]!r} is listed twice: remove one")
    return Values(options=tuple(raw_space))


def _find_tune_key_problem(
    key: str, factors: Sequence[Factor], overrides: Mapping[str, Any]
) -> str | None:
    problem = find_key_problem(key)
    if problem is not None:
        return problem
    section = key.split(".")[0]
    if section in _NOT_TUNABLE:
        return f"is not a hyper-parameter: {_NOT_TUNABLE[section]}"
    for factor in factors:
        varied_keys = {
            varied_key for level in factor.levels for varied_key in _leaf_keys(level.overrides)
        }
        if key == factor.name or any(_keys_overlap(key, varied_key) for varied_key in varied_keys):
            return f"is varied by the factor '{factor.name}': a key is either compared or tuned"
    if any(_keys_overlap(key, varied_key) for varied_key in _leaf_keys(overrides)):
        return "is also set by --set: each arm chooses it, so leave out --set"
    return None


def _leaf_keys(overrides: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the keys that overrides set; `objective: dpo` sets `objective.preset`."""
    keys = set()
    for key, value in overrides.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            keys |= _leaf_keys(value, f"{path}.")
        elif isinstance(value, str) and path in SHORTHANDS:
            keys.add(f"{path}.{SHORTHANDS[path]}")
        else:
            keys.add(path)
    return keys


def _keys_overlap(key: str, other_key: str) -> bool:
    key = f"{key}.{SHORTHANDS[key]}" if key in SHORTHANDS else key
    return key == other_key or key.startswith(f"{other_key}.") or other_key.startswith(f"{key}.")


def _check_values(
    key: str, space: Values | Range, base_tree: Mapping[str, Any], report_problem: ProblemReporter
) -> None:
    """Check the recipe with each value, or with both bounds."""
    values = space.options if isinstance(space, Values) else (space.low, space.high)
    for index, value in enumerate(values):
        tree = copy.deepcopy(dict(base_tree))
        set_key(tree, key, value)
        try:
            TrialConfig.model_validate(tree)
        except ValidationError as error:
            names = range(len(values)) if isinstance(space, Values) else ("low", "high")
            key_path = f"tune.keys.{key}[{names[index]}]"
            for line in explain_errors(error, TrialConfig, ""):
                path, _, sentence = line.removeprefix(": ").partition(": ")
                report_problem(key_path, sentence or path)


def _parse_metric(
    tune_file: TuneFile,
    benchmarks: BenchmarksConfig,
    goals: Mapping[str, Goal],
    report_problem: ProblemReporter,
) -> SelectMetric:
    """Return the metric that a search maximizes or minimizes; refuse one not under `select`."""
    select_metrics = {}
    for settings in benchmarks.select:
        try:
            benchmark = find_benchmark(settings.name)
        except ValueError:
            continue  # reported when the benchmarks are checked
        for name, info in benchmark.metrics.items():
            metric = SelectMetric(benchmark=settings.name, metric=name, goal=info.goal)
            select_metrics[metric.name] = metric
    chosen_metric = select_metrics.get(tune_file.metric)
    if chosen_metric is None:
        report_problem(
            "tune.metric", _unknown_metric_problem(tune_file.metric, select_metrics, goals)
        )
        return SelectMetric(benchmark="", metric="", goal="minimize")
    if tune_file.goal not in (None, chosen_metric.goal):
        report_problem(
            "tune.goal",
            f"'{chosen_metric.name}' must be {chosen_metric.goal}d: write `goal: "
            f"{chosen_metric.goal}`",
        )
    return chosen_metric


def _unknown_metric_problem(
    metric: str, select_metrics: Mapping[str, Any], goals: Mapping[str, Goal]
) -> str:
    if not select_metrics:
        return (
            f"'{metric}' cannot be used to choose: add a benchmark under `benchmarks.select` first"
        )
    choices = suggest(metric, select_metrics)
    if metric in goals:
        return (
            f"'{metric}' is under `report`, which cannot be used to choose: name one under "
            f"`select`: {choices}"
        )
    return f"unknown metric '{metric}': {choices}"
