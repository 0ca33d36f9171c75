"""Expand a study to trials with fingerprints."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from chip_core import data as preference_data
from chip_core.config.benchmark import DataPaths
from chip_core.config.identity import (
    evaluation_identity,
    fingerprint,
    inert_keys,
    training_identity,
    untrained_identity,
)
from chip_core.config.trial import DataConfig, EvaluationConfig, ModelConfig, TrialConfig
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.data.source import SHAPES
from chip_core.evaluation.generators import generator_problems
from chip_core.evaluation.generators.sharing import sharing_problems
from chip_core.evaluation.readiness import (
    find_ranker_problems,
    find_replay_problems,
    find_unmet_requirements,
    list_sides,
)
from chip_core.models import loading
from chip_core.selection.rule import selection_problems
from chip_core.utils.errors import ConfigError
from orchestrator.plan import benchmark_identities
from orchestrator.study.model import Cell, Level, Study

BASE = "base"
PLACEBO = "placebo"
_TOLD = 20  # problems of cells to report; one mistake in a large grid gives thousands
ABSENT = "—"  # instead of a level, if the factor does not apply


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """Why a trial cannot run: its arm's search has not ended, or it has failed."""

    reason: str
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training and its scores: a cell with one seed, or the untrained model."""

    fingerprint: str
    arm: str
    seed: int | None  # None for the untrained model
    config: TrialConfig
    evaluations: Mapping[str, str]  # "report/shapes" -> fingerprint of that evaluation
    params: Mapping[str, str]  # every factor of the study, as text
    blocked: Blocked | None = None  # if set, the fingerprint is provisional

    @property
    def untrained(self) -> bool:
        """Whether this is the untrained model."""
        return self.seed is None

    @property
    def name(self) -> str:
        """Display name: the arm and the seed."""
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A cell, or several that give the same training, under the name shown in the report."""

    name: str
    cells: tuple[Mapping[str, str], ...]  # the cells of the arm, each factor -> level
    reasons: tuple[str, ...]  # why these cells give the same training
    baseline: bool
    trials: tuple[Trial, ...]
    tuned: Mapping[str, str] = field(default_factory=dict)  # chosen settings, as text
    placebo: bool = False  # the baseline with other seeds; it has no cell

    @property
    def params(self) -> Mapping[str, str]:
        """The level of every factor. If the arm's cells differ in it, it is all their levels."""
        return self.trials[0].params


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arms and trials of a study."""

    study: Study
    arms: tuple[Arm, ...]
    base: Trial
    #: the part of the fingerprints that identifies models and data, by configuration as JSON
    identities: Mapping[str, Mapping[str, Any]] = field(repr=False)
    places: DataPaths = DataPaths()  # where the benchmarks' data are
    benchmarks: benchmark_identities.Identities = field(default_factory=dict)

    def identity(self, section: ModelConfig | DataConfig) -> Mapping[str, Any]:
        """Return the part of a fingerprint that identifies one of the plan's models or data."""
        return self.identities[section.model_dump_json()]

    def training(self, config: TrialConfig) -> dict[str, Any]:
        """Return everything that determines the model trained with a configuration of the plan."""
        names = self.benchmarks.get(benchmark_identities.RANKER, {})
        return _training(config, self.identity(config.model), self.identity(config.data), names)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that can run, without duplicates, the untrained model first."""
        # Seed by seed, so that an interrupted study has equally many seeds of every arm.
        seeds = zip(*(arm.trials for arm in self.arms), strict=True)
        trained = {
            trial.fingerprint: trial for seed in seeds for trial in seed if trial.blocked is None
        }
        return (self.base, *trained.values())

    @property
    def lacking(self) -> list[str]:
        """What trainings and benchmarks need and is missing, each with what to do."""
        trained = (trial.config for trial in self.trials if not trial.untrained)
        found = [problem for config in trained for problem in find_unmet_requirements(config)]
        for arm in self.arms:  # the same for all of its seeds
            found += find_ranker_problems(arm.trials[0].config, self.places)
            found += find_replay_problems(arm.trials[0].config, self.places)
        for model in {trial.config.model: None for trial in self.trials}:
            evaluation = self.base.config.evaluation
            found += generator_problems(evaluation, self.study.benchmarks, model)
        found += sharing_problems([trial.config for arm in self.arms for trial in arm.trials])
        return list(dict.fromkeys(found))

    @property
    def baseline(self) -> Arm:
        """The arm that differences are taken against."""
        return next(arm for arm in self.arms if arm.baseline)

    @property
    def compared(self) -> tuple[Arm, ...]:
        """The arms of the study's question: all, with the baseline, but the placebo."""
        return tuple(arm for arm in self.arms if not arm.placebo)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Disable garbage collection, which takes a third of the time of making a plan."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_garbage_kept()
def make_plan(
    study: Study,
    model_identity: Callable[[ModelConfig], Mapping[str, Any]] = loading.identity,
    data_identity: Callable[[DataConfig], Mapping[str, Any]] = preference_data.identity,
    *,
    places: DataPaths | None = None,
    seen: benchmark_identities.Identities | None = None,
) -> Plan:
    """Expand a study into arms and trials.

    Args:
        study: the study.
        model_identity: returns a model's part of a fingerprint; called once per model.
        data_identity: the same for data.
        places: where the benchmarks' data are.
        seen: benchmark identities of an earlier run, used for those whose data are not here.

    Raises:
        ConfigError: a cell is not a valid configuration, or no cell is left.
    """
    asked = _Identities(model_identity, data_identity)
    places = places or DataPaths()
    contents = benchmark_identities.identities(study, places, seen or {})
    base_config = _with(study.base, study, None)
    evaluations = _evaluations(study, contents, base_config.evaluation)
    # A checkpoint is picked by answers of transformers, whichever engine generates later.
    picking = _evaluations(study, contents, EvaluationConfig())
    names = benchmark_identities.ranker_names(places, seen or {})
    groups = _group_cells(study, asked, picking, names)
    if any(_ranked_by_names(group.config) for group in groups):
        contents = {**contents, benchmark_identities.RANKER: names}
    params = [_params(study, group.cells) for group in groups]
    arms = tuple(
        _arm(study, group, name, levels, evaluations)
        for group, name, levels in zip(groups, _names(params), params, strict=True)
    )
    if study.placebo:
        place = next(place for place, arm in enumerate(arms) if arm.baseline)
        arms += (_placebo(study, groups[place], arms, params[place], evaluations),)
    base = Trial(
        fingerprint=fingerprint(
            untrained_identity(base_config.model, asked.model(base_config.model))
        ),
        arm=BASE,
        seed=None,
        config=base_config,
        evaluations=evaluations,
        params={},
    )
    return Plan(
        study=study,
        arms=arms,
        base=base,
        identities=asked.found,
        places=places,
        benchmarks=contents,
    )


class _Identities:
    """The identities of models and data, each computed once."""

    def __init__(
        self,
        of_model: Callable[[ModelConfig], Mapping[str, Any]],
        of_data: Callable[[DataConfig], Mapping[str, Any]],
    ) -> None:
        self._of_model, self._of_data = of_model, of_data
        self.found: dict[str, Mapping[str, Any]] = {}  # by configuration, as JSON

    def model(self, config: ModelConfig) -> Mapping[str, Any]:
        """Return the identity of a model."""
        key = config.model_dump_json()
        if key not in self.found:
            self.found[key] = self._of_model(config)
        return self.found[key]

    def data(self, config: DataConfig) -> Mapping[str, Any]:
        """Return the identity of a data source."""
        key = config.model_dump_json()
        if key not in self.found:
            self.found[key] = self._of_data(config)
        return self.found[key]


def _evaluations(
    study: Study, contents: benchmark_identities.Identities, answering: EvaluationConfig
) -> dict[str, str]:
    """Return the fingerprint of each benchmark's evaluation by side and name: "report/amber"."""
    return {
        f"{side}/{settings.name}": fingerprint(
            evaluation_identity(side, settings, contents[f"{side}/{settings.name}"], answering)
        )
        for side, settings in list_sides(study.scored)
    }


def _ranked_by_names(config: TrialConfig) -> bool:
    """Return whether CHAIR's name list determines the pairs made of a trial's own answers."""
    pairs = config.pairs
    return bool(pairs.rounds) and pairs.ranker == "chair" and config.data.source != SHAPES


def _training(
    config: TrialConfig,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    names: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that determines a trained model, with the ranker of its own answers."""
    training = training_identity(config, model, data)
    if _ranked_by_names(config):
        training["pairs"].update(names)
    return training


def _group_cells(
    study: Study, identities: _Identities, picking: Mapping[str, str], names: Mapping[str, Any]
) -> list[_Group]:
    """Group a study's cells by training. The cells of one group are one arm.

    Args:
        study: the study.
        identities: identities of models and data.
        picking: fingerprints of the evaluations during training, by side and name.
        names: identity of the name list by which CHAIR ranks.

    Raises:
        ConfigError: a cell is not a valid configuration.
    """
    groups: dict[str, _Group] = {}
    problems: list[str] = []
    level_of = {
        (factor.name, level.name): level for factor in study.factors for level in factor.levels
    }
    for cell in study.cells:
        try:
            config = _configuration(study, cell, [level_of[item] for item in cell.items()])
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        problems.extend(f"{study.source}: {what}" for what in _selection_problems(study, config))
        model, data = identities.model(config.model), identities.data(config.data)
        training = _training(config, model, data, names)
        if config.training.score_at:  # evaluations during training pick the model
            picks = {key: mark for key, mark in picking.items() if key.startswith("select/")}
            training["select"] = picks
        key = fingerprint(training)
        if key in groups:
            groups[key].cells.append(cell)
        else:
            groups[key] = _Group(key=key, training=training, config=config, cells=[cell])
    if problems:
        problems = list(dict.fromkeys(problems))
        more = [f"{study.source}: … and {len(problems) - _TOLD:,} more"] * (len(problems) > _TOLD)
        raise ConfigError(problems[:_TOLD] + more)
    return list(groups.values())


def _selection_problems(study: Study, config: TrialConfig) -> list[str]:
    if config.training.score_at and study.tune is not None:
        return [
            "training.score_at: an arm that searches (`tune`) is judged by the ends of trainings: "
            "leave out one of the two"
        ]
    return selection_problems(config)


def _configuration(study: Study, cell: Cell, levels: Iterable[Level]) -> TrialConfig:
    tree = _sections(study.base)
    for level in levels:
        for key, value in level.overrides.items():
            set_key(tree, key, value)
    name = ", ".join(f"{factor}={level}" for factor, level in cell.items())
    return _with(tree, study, f"{study.source}: cell {name}")


def _sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a tree's sections, not their values; `copy.deepcopy` takes ten times as long."""
    return {
        key: _sections(value) if isinstance(value, dict) else value for key, value in tree.items()
    }


def _with(tree: Mapping[str, Any], study: Study, source: str | None) -> TrialConfig:
    """Validate a tree, and set the study's benchmarks and first seed."""
    config = parse_trial_config(tree, source or study.source)
    return config.model_copy(update={"benchmarks": study.scored, "seed": study.seeds[0]})


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Cells that give the same training."""

    key: str  # fingerprint with the study's first seed
    training: Mapping[str, Any]  # the content of that fingerprint
    config: TrialConfig
    cells: list[Cell]


def _names(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the arms' names: their levels, without factors that do not apply if still distinct."""
    whole = [", ".join(one.values()) for one in params]
    if not any(ABSENT in one.values() for one in params):
        return whole
    short = [", ".join(level for level in one.values() if level != ABSENT) for one in params]
    return short if all(short) and len(set(short)) == len(short) else whole


def _arm(
    study: Study,
    group: _Group,
    name: str,
    params: Mapping[str, str],
    evaluations: Mapping[str, str],
    seeds: Sequence[int] | None = None,
) -> Arm:
    cells = tuple(group.cells)
    blocked = None if study.tune is None else Blocked(reason="its search has not ended")
    # The settings are still to be chosen: the fingerprint must not equal that of a training.
    training = group.training if blocked is None else {**group.training, "kind": "held"}
    trials = []
    for seed in study.seeds if seeds is None else seeds:
        first = blocked is None and seed == study.seeds[0]
        trials.append(
            Trial(
                fingerprint=group.key if first else fingerprint({**training, "seed": seed}),
                arm=name,
                seed=seed,
                config=group.config.model_copy(update={"seed": seed}),
                evaluations=evaluations,
                params=params,
                blocked=blocked,
            )
        )
    return Arm(
        name=name,
        cells=cells,
        reasons=_reasons(study, cells, group.config),
        baseline=any(cell == dict(study.baseline) for cell in cells),
        trials=tuple(trials),
    )


def _placebo(
    study: Study,
    group: _Group,
    arms: Sequence[Arm],
    params: Mapping[str, str],
    evaluations: Mapping[str, str],
) -> Arm:
    """Return an arm like the baseline with seeds of its own.

    Raises:
        ConfigError: an arm is named like the placebo.
    """
    if any(arm.name == PLACEBO for arm in arms):
        raise ConfigError(
            [f"{study.source}: placebo: an arm is named '{PLACEBO}': give its level another name"]
        )
    arm = _arm(study, group, PLACEBO, params, evaluations, study.placebo_seeds)
    return replace(arm, cells=(), reasons=(), baseline=False, placebo=True)


def _params(study: Study, cells: Sequence[Cell]) -> dict[str, str]:
    """Return factor -> level. If the cells of an arm differ in it, it is all their levels."""
    if len(cells) == 1 and len(cells[0]) == len(study.factors):
        return cells[0]
    return {
        factor.name: "|".join(dict.fromkeys(cell.get(factor.name, ABSENT) for cell in cells))
        for factor in study.factors
    }


def _reasons(study: Study, cells: Sequence[Cell], config: TrialConfig) -> tuple[str, ...]:
    """Return why the cells of one arm give the same training."""
    if len(cells) == 1:
        return ()
    inert = inert_keys(config)
    reasons: list[str] = []
    for factor in study.factors:
        if len({cell.get(factor.name) for cell in cells}) == 1:
            continue
        keys = {key for level in factor.levels for key in level.overrides}
        causes = sorted(
            reason
            for path, reason in inert.items()
            if any(key == path or key.startswith(f"{path}.") for key in keys)
        )
        cause = causes[0] if causes else "its levels come to the same configuration"
        reasons.append(f"{factor.name} has no effect: {cause}")
    return tuple(reasons)
