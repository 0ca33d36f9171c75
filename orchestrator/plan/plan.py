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
    find_inert_keys,
    fingerprint,
    training_identity,
    untrained_identity,
)
from chip_core.config.trial import DataConfig, EvaluationConfig, ModelConfig, TrialConfig
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.data.source import SHAPES
from chip_core.evaluation.generators import generator_problems
from chip_core.evaluation.generators.choice import sharing_problems
from chip_core.evaluation.readiness import (
    find_ranker_problems,
    find_replay_problems,
    find_unmet_requirements,
    list_sides,
)
from chip_core.models import loading
from chip_core.selection.rule import find_selection_problems
from chip_core.utils.errors import ConfigError
from orchestrator.plan import benchmark_identities
from orchestrator.study.model import Cell, Level, Study

BASE_ARM = "base"
PLACEBO_ARM = "placebo"
_MAX_REPORTED_PROBLEMS = (
    20  # problems of cells to report; one mistake in a large grid gives thousands
)
NO_LEVEL = "—"  # instead of a level, if the factor does not apply


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


def trial_key(fingerprint: str) -> str:
    """Return the folder of a trial's attempts in a work directory or a storage."""
    return f"trials/{fingerprint[:16]}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A cell, or several that give the same training, under the name shown in the report."""

    name: str
    cells: tuple[Mapping[str, str], ...]  # the cells of the arm, each factor -> level
    reasons: tuple[str, ...]  # why these cells give the same training
    baseline: bool
    trials: tuple[Trial, ...]
    tuned: Mapping[str, str] = field(default_factory=dict)  # chosen settings, as text
    placebo: bool = False  # whether it is the baseline with other seeds, without a cell

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
    data_paths: DataPaths = DataPaths()  # where the benchmarks' data are
    benchmarks: benchmark_identities.Identities = field(default_factory=dict)

    def identity(self, section: ModelConfig | DataConfig) -> Mapping[str, Any]:
        """Return the part of a fingerprint that identifies one of the plan's models or data."""
        return self.identities[section.model_dump_json()]

    def training_identity_of(self, config: TrialConfig) -> dict[str, Any]:
        """Return everything that determines the model trained with a configuration of the plan."""
        names = self.benchmarks.get(benchmark_identities.RANKER_KEY, {})
        return _training_identity(
            config, self.identity(config.model), self.identity(config.data), names
        )

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
    def all_trials(self) -> list[Trial]:
        """Every trial that can run, with duplicates, the untrained model first."""
        seeds = [trial for arm in self.arms for trial in arm.trials if trial.blocked is None]
        return [self.base, *seeds]

    @property
    def missing_requirements(self) -> list[str]:
        """What trainings and benchmarks need and do not have, each with its remedy."""
        configs = (trial.config for trial in self.trials if not trial.untrained)
        problems = [problem for config in configs for problem in find_unmet_requirements(config)]
        for arm in self.arms:  # the same for all of its seeds
            problems += find_ranker_problems(arm.trials[0].config, self.data_paths)
            problems += find_replay_problems(arm.trials[0].config, self.data_paths)
        evaluation = self.base.config.evaluation
        if not evaluation.in_process:
            for model in {trial.config.model: None for trial in self.trials}:
                problems += generator_problems(evaluation, self.study.benchmarks, model)
        trained_configs = [trial.config for arm in self.arms for trial in arm.trials]
        if any(config.evaluation.has_study_server for config in trained_configs):
            problems += sharing_problems(trained_configs)
        return list(dict.fromkeys(problems))

    @property
    def baseline(self) -> Arm:
        """The arm that differences are taken against."""
        return next(arm for arm in self.arms if arm.baseline)

    @property
    def compared_arms(self) -> tuple[Arm, ...]:
        """The arms of the study's question: all, with the baseline, but the placebo."""
        return tuple(arm for arm in self.arms if not arm.placebo)


@contextmanager
def _disable_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which takes a third of the time of making a plan."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_disable_garbage_collection()
def make_plan(
    study: Study,
    model_identity: Callable[[ModelConfig], Mapping[str, Any]] = loading.identity,
    data_identity: Callable[[DataConfig], Mapping[str, Any]] = preference_data.identity,
    *,
    data_paths: DataPaths | None = None,
    known_identities: benchmark_identities.Identities | None = None,
) -> Plan:
    """Expand a study into arms and trials.

    Args:
        study: the study.
        model_identity: returns a model's part of a fingerprint; called once per model.
        data_identity: the same for data.
        data_paths: where the benchmarks' data are.
        known_identities: benchmark identities of an earlier run, used where data are not here.

    Raises:
        ConfigError: a cell is not a valid configuration, or no cell is left.
    """
    identities = _IdentityCache(model_identity, data_identity)
    data_paths = data_paths or DataPaths()
    benchmarks = benchmark_identities.benchmark_identities(
        study, data_paths, known_identities or {}
    )
    base_config = _validate_config(study.base, study, None)
    evaluations = _evaluation_fingerprints(study, benchmarks, base_config.evaluation)
    # A checkpoint is picked by answers of transformers, whichever engine generates later.
    selection_evaluations = _evaluation_fingerprints(study, benchmarks, EvaluationConfig())
    ranker_identity = benchmark_identities.ranker_identity(data_paths, known_identities or {})
    groups = _group_cells(study, identities, selection_evaluations, ranker_identity)
    if any(_uses_ranker_names(group.config) for group in groups):
        benchmarks = {**benchmarks, benchmark_identities.RANKER_KEY: ranker_identity}
    arm_params = [_arm_params(study, group.cells) for group in groups]
    arms = tuple(
        _make_arm(study, group, name, levels, evaluations)
        for group, name, levels in zip(groups, _arm_names(arm_params), arm_params, strict=True)
    )
    if study.placebo:
        index = next(index for index, arm in enumerate(arms) if arm.baseline)
        arms += (_make_placebo(study, groups[index], arms, arm_params[index], evaluations),)
    base = Trial(
        fingerprint=fingerprint(
            untrained_identity(base_config.model, identities.model(base_config.model))
        ),
        arm=BASE_ARM,
        seed=None,
        config=base_config,
        evaluations=evaluations,
        params={},
    )
    return Plan(
        study=study,
        arms=arms,
        base=base,
        identities=identities.identities,
        data_paths=data_paths,
        benchmarks=benchmarks,
    )


class _IdentityCache:
    """The identities of models and data, each computed once."""

    def __init__(
        self,
        model_identity: Callable[[ModelConfig], Mapping[str, Any]],
        data_identity: Callable[[DataConfig], Mapping[str, Any]],
    ) -> None:
        self._model_identity, self._data_identity = model_identity, data_identity
        self.identities: dict[str, Mapping[str, Any]] = {}  # by configuration, as JSON

    def model(self, config: ModelConfig) -> Mapping[str, Any]:
        """Return the identity of a model."""
        key = config.model_dump_json()
        if key not in self.identities:
            self.identities[key] = self._model_identity(config)
        return self.identities[key]

    def data(self, config: DataConfig) -> Mapping[str, Any]:
        """Return the identity of a data source."""
        key = config.model_dump_json()
        if key not in self.identities:
            self.identities[key] = self._data_identity(config)
        return self.identities[key]


def _evaluation_fingerprints(
    study: Study, benchmarks: benchmark_identities.Identities, evaluation: EvaluationConfig
) -> dict[str, str]:
    """Return the fingerprint of each benchmark's evaluation by side and name: "report/amber"."""
    return {
        f"{side}/{settings.name}": fingerprint(
            evaluation_identity(side, settings, benchmarks[f"{side}/{settings.name}"], evaluation)
        )
        for side, settings in list_sides(study.scored_benchmarks)
    }


def _uses_ranker_names(config: TrialConfig) -> bool:
    """Return whether CHAIR's name list determines the pairs made of a trial's own answers."""
    pairs = config.pairs
    return bool(pairs.rounds) and pairs.ranker == "chair" and config.data.source != SHAPES


def _training_identity(
    config: TrialConfig,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    ranker_identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that determines a trained model, with the ranker of its own answers."""
    training = training_identity(config, model, data)
    if _uses_ranker_names(config):
        training["pairs"].update(ranker_identity)
    return training


def _group_cells(
    study: Study,
    identities: _IdentityCache,
    selection_evaluations: Mapping[str, str],
    ranker_identity: Mapping[str, Any],
) -> list[_CellGroup]:
    """Group a study's cells by training. The cells of one group are one arm.

    Args:
        study: the study.
        identities: identities of models and data.
        selection_evaluations: fingerprints of the evaluations during training, by side and name.
        ranker_identity: identity of the name list by which CHAIR ranks.

    Raises:
        ConfigError: a cell is not a valid configuration.
    """
    groups: dict[str, _CellGroup] = {}
    problems: list[str] = []
    levels = {
        (factor.name, level.name): level for factor in study.factors for level in factor.levels
    }
    for cell in study.cells:
        try:
            config = _cell_config(study, cell, [levels[item] for item in cell.items()])
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        problems.extend(
            f"{study.source}: {problem}" for problem in _selection_problems(study, config)
        )
        model, data = identities.model(config.model), identities.data(config.data)
        training = _training_identity(config, model, data, ranker_identity)
        if config.training.score_at:  # evaluations during training pick the model
            select_evaluations = {
                key: evaluation
                for key, evaluation in selection_evaluations.items()
                if key.startswith("select/")
            }
            training["select"] = select_evaluations
        key = fingerprint(training)
        if key in groups:
            groups[key].cells.append(cell)
        else:
            groups[key] = _CellGroup(key=key, training=training, config=config, cells=[cell])
    if problems:
        problems = list(dict.fromkeys(problems))
        remainder = [f"{study.source}: … and {len(problems) - _MAX_REPORTED_PROBLEMS:,} more"] * (
            len(problems) > _MAX_REPORTED_PROBLEMS
        )
        raise ConfigError(problems[:_MAX_REPORTED_PROBLEMS] + remainder)
    return list(groups.values())


def _selection_problems(study: Study, config: TrialConfig) -> list[str]:
    if config.training.score_at and study.tune is not None:
        return [
            "training.score_at: a search (`tune`) compares finished trainings: leave out one of "
            "the two"
        ]
    return find_selection_problems(config)


def _cell_config(study: Study, cell: Cell, levels: Iterable[Level]) -> TrialConfig:
    tree = _copy_sections(study.base)
    for level in levels:
        for key, value in level.overrides.items():
            set_key(tree, key, value)
    name = ", ".join(f"{factor}={level}" for factor, level in cell.items())
    return _validate_config(tree, study, f"{study.source}: cell {name}")


def _copy_sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a tree's sections, not their values; `copy.deepcopy` takes ten times as long."""
    return {
        key: _copy_sections(value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }


def _validate_config(tree: Mapping[str, Any], study: Study, source: str | None) -> TrialConfig:
    """Validate a tree, and set the study's benchmarks and first seed."""
    config = parse_trial_config(tree, source or study.source)
    return config.model_copy(update={"benchmarks": study.scored_benchmarks, "seed": study.seeds[0]})


@dataclass(frozen=True, kw_only=True)
class _CellGroup:
    """The cells that give the same training."""

    key: str  # fingerprint with the study's first seed
    training: Mapping[str, Any]  # the content of that fingerprint
    config: TrialConfig
    cells: list[Cell]


def _arm_names(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the arms' names: their levels, without factors that do not apply if still distinct."""
    full_names = [", ".join(levels.values()) for levels in params]
    if not any(NO_LEVEL in levels.values() for levels in params):
        return full_names
    short_names = [
        ", ".join(level for level in levels.values() if level != NO_LEVEL) for levels in params
    ]
    return (
        short_names
        if all(short_names) and len(set(short_names)) == len(short_names)
        else full_names
    )


def _make_arm(
    study: Study,
    group: _CellGroup,
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
        is_first = blocked is None and seed == study.seeds[0]
        trials.append(
            Trial(
                fingerprint=group.key if is_first else fingerprint({**training, "seed": seed}),
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
        reasons=_merge_reasons(study, cells, group.config),
        baseline=any(cell == dict(study.baseline) for cell in cells),
        trials=tuple(trials),
    )


def _make_placebo(
    study: Study,
    group: _CellGroup,
    arms: Sequence[Arm],
    params: Mapping[str, str],
    evaluations: Mapping[str, str],
) -> Arm:
    """Return an arm like the baseline with seeds of its own.

    Raises:
        ConfigError: an arm is named like the placebo.
    """
    if any(arm.name == PLACEBO_ARM for arm in arms):
        raise ConfigError(
            [
                f"{study.source}: placebo: an arm is named '{PLACEBO_ARM}': give its level another "
                "name"
            ]
        )
    arm = _make_arm(study, group, PLACEBO_ARM, params, evaluations, study.placebo_seeds)
    return replace(arm, cells=(), reasons=(), baseline=False, placebo=True)


def _arm_params(study: Study, cells: Sequence[Cell]) -> dict[str, str]:
    """Return factor -> level. If the cells of an arm differ in it, it is all their levels."""
    if len(cells) == 1 and len(cells[0]) == len(study.factors):
        return cells[0]
    return {
        factor.name: "|".join(dict.fromkeys(cell.get(factor.name, NO_LEVEL) for cell in cells))
        for factor in study.factors
    }


def _merge_reasons(study: Study, cells: Sequence[Cell], config: TrialConfig) -> tuple[str, ...]:
    """Return why the cells of one arm give the same training."""
    if len(cells) == 1:
        return ()
    inert = find_inert_keys(config)
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
        cause = causes[0] if causes else "its levels give the same configuration"
        reasons.append(f"{factor.name} has no effect: {cause}")
    return tuple(reasons)
