"""Parse and check the `tune:` block of a study file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chip_core.config.benchmark import BenchmarksConfig
from chip_core.config.trial import LARGEST_SEED, SHORTHANDS, TrialConfig
from chip_core.config.validation import explain_errors, key_problem, set_key
from chip_core.evaluation.items import find_benchmark
from chip_core.utils.registry import suggest
from orchestrator.study.metrics import Goal, Wrong
from orchestrator.study.model import Factor
from orchestrator.study.search_space import Range, SelectMetric, Tune, Values, seed_problem

#: Default seed of a search's draws and trainings. It must not be a seed of the study, since a
#: training of the search is never quoted; studies are unlikely to have it.
SEED = 1000
#: Sections that are not hyper-parameters, and why.
_FIXED = {
    "seed": "the study's own `seeds:` says it",
    "benchmarks": "what is asked is the same for every trial",
    "evaluation": "answers are made alike for every trial",
    "engine": "it changes no figure",
    "model": "arms are compared on one model: make it a factor",
    "data": "arms are compared on the same data: make it a factor",
}

Number = Annotated[int | float, Field(allow_inf_nan=False)]


class RangeFile(BaseModel):
    """A range of values, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _has_an_inside(self) -> RangeFile:
        if self.low >= self.high:
            raise ValueError("low is not below high: give a range")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range begins above 0: raise low")
        return self


class TuneFile(BaseModel):
    """What each arm chooses for itself on `select`, before its seeds run with that."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keys: Annotated[dict[str, RangeFile | list[Any]], Field(min_length=1)]
    metric: str
    goal: Goal | None = None
    trials: Annotated[int, Field(ge=1)] | None = None  # None: all combinations of values
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = SEED


def parse_tune(  # noqa: PLR0913 (blocks of a study file)
    written: TuneFile | None,
    *,
    benchmarks: BenchmarksConfig,
    goals: Mapping[str, Goal],
    factors: Sequence[Factor],
    seeds: tuple[int, ...],
    base: Mapping[str, Any],
    overrides: Mapping[str, Any],
    wrong: Wrong,
) -> Tune | None:
    """Return a study's search, and report problems with it to `wrong`.

    Args:
        written: block of the study file.
        benchmarks: the study's benchmarks.
        goals: the study's metrics and their goals.
        factors: the study's factors.
        seeds: the study's seeds.
        base: the recipe as a tree.
        overrides: keys that the command line sets.
        wrong: called with (key, problem).
    """
    if written is None:
        return None
    keys = {key: _space(key, given, wrong) for key, given in written.keys.items()}
    for key, space in keys.items():
        problem = _key_problem(key, factors, overrides)
        if problem is not None:
            wrong(f"tune.keys.{key}", problem)
        elif base:
            _check_values(key, space, base, wrong)
    metric = _metric(written, benchmarks, goals, wrong)
    if not benchmarks.report:
        wrong("tune", "nothing would be quoted: add a benchmark under `benchmarks.report`")
    clash = seed_problem(written.seed, seeds)
    if clash is not None:
        wrong(*clash.split(": ", 1))
    tune = Tune(keys=keys, trials=written.trials or 1, metric=metric, seed=written.seed)
    return _with_trials(tune, written.trials, wrong)


def _with_trials(tune: Tune, trials: int | None, wrong: Wrong) -> Tune:
    most = tune.combinations
    if trials is None and most is None:
        wrong("tune.trials", "is missing: a range has no end of values: say how many to try")
    if trials is not None and most is not None and trials > most:
        wrong("tune.trials", f"{trials} are more than the {most} combinations of values there are")
    return Tune(keys=tune.keys, trials=trials or most or 1, metric=tune.metric, seed=tune.seed)


def _space(key: str, given: RangeFile | list[Any], wrong: Wrong) -> Values | Range:
    if isinstance(given, RangeFile):
        return Range(low=given.low, high=given.high, log=given.log)
    if not given:
        wrong(f"tune.keys.{key}", "has no values: give at least one")
    repeated = [value for place, value in enumerate(given) if value in given[:place]]
    if repeated:
        wrong(f"tune.keys.{key}", f"{repeated[0]!r} stands twice: remove one")
    return Values(options=tuple(given))


def _key_problem(key: str, factors: Sequence[Factor], overrides: Mapping[str, Any]) -> str | None:
    problem = key_problem(key)
    if problem is not None:
        return problem
    section = key.split(".")[0]
    if section in _FIXED:
        return f"is no hyper-parameter: {_FIXED[section]}"
    for factor in factors:
        varied = {leaf for level in factor.levels for leaf in _leaves(level.overrides)}
        if key == factor.name or any(_overlap(key, leaf) for leaf in varied):
            return f"is varied by the factor '{factor.name}': what is compared is not tuned"
    if any(_overlap(key, leaf) for leaf in _leaves(overrides)):
        return "is set by --set too: each arm chooses it, so leave that out"
    return None


def _leaves(overrides: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the keys that overrides set; `objective: dpo` sets `objective.preset`."""
    found = set()
    for key, value in overrides.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{path}.")
        elif isinstance(value, str) and path in SHORTHANDS:
            found.add(f"{path}.{SHORTHANDS[path]}")
        else:
            found.add(path)
    return found


def _overlap(one: str, other: str) -> bool:
    one = f"{one}.{SHORTHANDS[one]}" if one in SHORTHANDS else one
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _check_values(key: str, space: Values | Range, base: Mapping[str, Any], wrong: Wrong) -> None:
    """Check the recipe with each value, or with both bounds."""
    values = space.options if isinstance(space, Values) else (space.low, space.high)
    for place, value in enumerate(values):
        tree = copy.deepcopy(dict(base))
        set_key(tree, key, value)
        try:
            TrialConfig.model_validate(tree)
        except ValidationError as error:
            names = range(len(values)) if isinstance(space, Values) else ("low", "high")
            where = f"tune.keys.{key}[{names[place]}]"
            for line in explain_errors(error, TrialConfig, ""):
                path, _, sentence = line.removeprefix(": ").partition(": ")
                wrong(where, sentence or path)


def _metric(
    written: TuneFile, benchmarks: BenchmarksConfig, goals: Mapping[str, Goal], wrong: Wrong
) -> SelectMetric:
    """Return the metric that a search maximizes or minimizes; refuse one not under `select`."""
    known = {}
    for settings in benchmarks.select:
        try:
            benchmark = find_benchmark(settings.name)
        except ValueError:
            continue  # reported when the benchmarks are checked
        for name, info in benchmark.metrics.items():
            metric = SelectMetric(benchmark=settings.name, metric=name, goal=info.goal)
            known[metric.name] = metric
    found = known.get(written.metric)
    if found is None:
        wrong("tune.metric", _unknown(written.metric, known, goals))
        return SelectMetric(benchmark="", metric="", goal="minimize")
    if written.goal not in (None, found.goal):
        wrong("tune.goal", f"'{found.name}' is to be {found.goal}d: write `goal: {found.goal}`")
    return found


def _unknown(metric: str, known: Mapping[str, Any], goals: Mapping[str, Goal]) -> str:
    if not known:
        return f"'{metric}' chooses nothing: add a benchmark under `benchmarks.select` first"
    choices = suggest(metric, known)
    if metric in goals:
        return f"'{metric}' is of `report`, which chooses nothing: name one of `select`: {choices}"
    return f"unknown metric '{metric}': {choices}"
