"""Expand a study to its trials, and give each its fingerprint."""

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
from chip_core.config.validation import set_key, trial_config
from chip_core.data.source import SHAPES
from chip_core.evaluation.generators import generator_problems
from chip_core.evaluation.generators.sharing import sharing_problems
from chip_core.evaluation.readiness import (
    ranker_problems,
    replay_problems,
    sides,
    unmet_requirements,
)
from chip_core.models import loading
from chip_core.selection.rule import selection_problems
from chip_core.utils.errors import ConfigError
from orchestrator.plan import benchmark_identities
from orchestrator.study.model import Cell, Level, Study

BASE = "base"
PLACEBO = "placebo"
_TOLD = 20  # problems of cells; a large grid has thousands where it has one
ABSENT = "—"  # in place of a level, where a factor does not apply


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """Why a trial cannot run: its arm has not chosen its settings, or will not."""

    reason: str
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training and its scores: a cell with one seed. The untrained model is one too."""

    fingerprint: str
    arm: str
    seed: int | None  # None for the untrained model
    config: TrialConfig
    evaluations: Mapping[str, str]  # "report/shapes" -> fingerprint of that evaluation
    params: Mapping[str, str]  # every factor of the study, as text
    blocked: Blocked | None = None  # its fingerprint stands for nothing yet

    @property
    def untrained(self) -> bool:
        """Whether this is the untrained model."""
        return self.seed is None

    @property
    def name(self) -> str:
        """What people call it: its arm and its seed."""
        return self.arm if self.seed is None else f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A cell as the report names it; cells that are one trial are one arm."""

    name: str
    cells: tuple[Mapping[str, str], ...]  # factor -> level, of every cell it stands for
    reasons: tuple[str, ...]  # why those cells are one
    baseline: bool
    trials: tuple[Trial, ...]
    tuned: Mapping[str, str] = field(default_factory=dict)  # what it chose: key -> value, as text
    placebo: bool = False  # equal to the baseline but for its seeds; it stands for no cell

    @property
    def params(self) -> Mapping[str, str]:
        """Factor -> level of the first cell; of all, where they differ; of every factor."""
        return self.trials[0].params


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study comes to."""

    study: Study
    arms: tuple[Arm, ...]
    base: Trial
    #: what the fingerprints hold of models and data, by their configuration as JSON
    identities: Mapping[str, Mapping[str, Any]] = field(repr=False)
    places: DataPaths = DataPaths()  # where its benchmarks' data lie
    benchmarks: benchmark_identities.Identities = field(default_factory=dict)  # what they are

    def identity(self, section: ModelConfig | DataConfig) -> Mapping[str, Any]:
        """Return what a fingerprint holds of one of the plan's models or data."""
        return self.identities[section.model_dump_json()]

    def training(self, config: TrialConfig) -> dict[str, Any]:
        """Return all that decides the model that a configuration of the plan trains."""
        names = self.benchmarks.get(benchmark_identities.RANKER, {})
        return _training(config, self.identity(config.model), self.identity(config.data), names)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that can run, the untrained model first; a fingerprint stands once."""
        # Seed by seed, so that a study cut short has every arm as often.
        seeds = zip(*(arm.trials for arm in self.arms), strict=True)
        trained = {
            trial.fingerprint: trial for seed in seeds for trial in seed if trial.blocked is None
        }
        return (self.base, *trained.values())

    @property
    def lacking(self) -> list[str]:
        """What trainings and answers need that is not here, each with what to do."""
        trained = (trial.config for trial in self.trials if not trial.untrained)
        found = [problem for config in trained for problem in unmet_requirements(config)]
        for arm in self.arms:  # its seeds rank alike
            found += ranker_problems(arm.trials[0].config, self.places)
            found += replay_problems(arm.trials[0].config, self.places)
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
        """The arms that the study asks about, the baseline among them: all but a placebo."""
        return tuple(arm for arm in self.arms if not arm.placebo)


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Keep the collector from looking through a growing plan: a third of its time."""
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
        model_identity: what a fingerprint holds of a model; asked once for each model.
        data_identity: the same of the data.
        places: where the benchmarks' data lie.
        seen: the benchmarks as an earlier run had them, for those whose data are not here.

    Raises:
        ConfigError: a cell is no valid configuration, or no cell is left.
    """
    asked = _Identities(model_identity, data_identity)
    places = places or DataPaths()
    contents = benchmark_identities.identities(study, places, seen or {})
    base_config = _with(study.base, study, None)
    evaluations = _evaluations(study, contents, base_config.evaluation)
    # While a model is picked, transformers answers, whichever engine does so later.
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
    """What fingerprints hold of models and data; each is asked for once."""

    def __init__(
        self,
        of_model: Callable[[ModelConfig], Mapping[str, Any]],
        of_data: Callable[[DataConfig], Mapping[str, Any]],
    ) -> None:
        self._of_model, self._of_data = of_model, of_data
        self.found: dict[str, Mapping[str, Any]] = {}  # by configuration, as JSON

    def model(self, config: ModelConfig) -> Mapping[str, Any]:
        """Return a model's."""
        key = config.model_dump_json()
        if key not in self.found:
            self.found[key] = self._of_model(config)
        return self.found[key]

    def data(self, config: DataConfig) -> Mapping[str, Any]:
        """Return data's."""
        key = config.model_dump_json()
        if key not in self.found:
            self.found[key] = self._of_data(config)
        return self.found[key]


def _evaluations(
    study: Study, contents: benchmark_identities.Identities, answering: EvaluationConfig
) -> dict[str, str]:
    """Return the fingerprint of each benchmark's evaluation, by its side and name."""
    return {
        f"{side}/{settings.name}": fingerprint(
            evaluation_identity(side, settings, contents[f"{side}/{settings.name}"], answering)
        )
        for side, settings in sides(study.scored)
    }


def _ranked_by_names(config: TrialConfig) -> bool:
    """Return whether a list of names decides which pairs a trial makes of its own answers."""
    pairs = config.pairs
    return bool(pairs.rounds) and pairs.ranker == "chair" and config.data.source != SHAPES


def _training(
    config: TrialConfig,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    names: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all that decides a trained model, what ranks its own answers among it."""
    training = training_identity(config, model, data)
    if _ranked_by_names(config):
        training["pairs"].update(names)
    return training


def _group_cells(
    study: Study, identities: _Identities, picking: Mapping[str, str], names: Mapping[str, Any]
) -> list[_Group]:
    """Return a study's cells by training: those that train alike are one arm.

    Args:
        study: the study.
        identities: of models and data.
        picking: fingerprints of what models answer on their way, by side and name.
        names: what the list is by which CHAIR ranks.

    Raises:
        ConfigError: a cell is no valid configuration.
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
        if config.training.score_at:  # what is answered on its way picks the model
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
    """Return a tree whose sections are its own; `copy.deepcopy` takes ten times as long."""
    return {
        key: _sections(value) if isinstance(value, dict) else value for key, value in tree.items()
    }


def _with(tree: Mapping[str, Any], study: Study, source: str | None) -> TrialConfig:
    """Return a tree's configuration with the study's benchmarks and first seed."""
    config = trial_config(tree, source or study.source)
    return config.model_copy(update={"benchmarks": study.scored, "seed": study.seeds[0]})


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Cells that are one trial a seed."""

    key: str  # the fingerprint at the study's first seed
    training: Mapping[str, Any]  # what that is the fingerprint of
    config: TrialConfig
    cells: list[Cell]


def _names(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the arms' names: their levels, without factors that do not apply if that is plain."""
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
    # What is still to be chosen is not what was read: its fingerprint is that of no training.
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
    """Return the baseline once more, with seeds of its own.

    Raises:
        ConfigError: another arm has its name.
    """
    if any(arm.name == PLACEBO for arm in arms):
        raise ConfigError(
            [f"{study.source}: placebo: an arm is named '{PLACEBO}': give its level another name"]
        )
    arm = _arm(study, group, PLACEBO, params, evaluations, study.placebo_seeds)
    return replace(arm, cells=(), reasons=(), baseline=False, placebo=True)


def _params(study: Study, cells: Sequence[Cell]) -> dict[str, str]:
    """Return factor -> level; where the cells of one arm differ, all their levels."""
    if len(cells) == 1 and len(cells[0]) == len(study.factors):
        return cells[0]
    return {
        factor.name: "|".join(dict.fromkeys(cell.get(factor.name, ABSENT) for cell in cells))
        for factor in study.factors
    }


def _reasons(study: Study, cells: Sequence[Cell], config: TrialConfig) -> tuple[str, ...]:
    """Say why the cells of one arm cannot differ."""
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
