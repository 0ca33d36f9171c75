"""Resolve each arm's search: its trials, its best draw and the trials of its seeds.

A search trial is an ordinary trial with its own fingerprint, so nothing is computed twice. It is
scored on the benchmarks under `select` only, never on those under `report`.

The draw with the best figure is chosen, the first of equal ones. Draws that failed or have an
undefined figure do not count; an arm with no other draws has FAILED. Nothing is chosen before every
draw of the arm has ended; the next run retries failed draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from chip_core.config.identity import evaluation_identity, fingerprint
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import parse_trial_config, set_key
from chip_core.evaluation.readiness import list_sides
from chip_core.utils.errors import ConfigError, UserError
from orchestrator.plan.plan import Arm, Blocked, Plan, Trial
from orchestrator.state.ledger import Ledger
from orchestrator.study.model import format_level
from orchestrator.study.search_space import SelectMetric, Tune


@dataclass(frozen=True, kw_only=True)
class SearchTrial(Trial):
    """One draw of an arm's search.

    Raises:
        UserError: it has a benchmark under `report`.
    """

    arm_name: str  # name of the arm
    number: int  # from 1
    values: Mapping[str, Any]  # drawn values by key

    def __post_init__(self) -> None:
        reported_benchmarks = [
            *self.config.benchmarks.report,
            *_keys_not_under_select(self.evaluations),
        ]
        if reported_benchmarks:
            raise UserError(
                f"{self.name}: a search trial may only be scored on the benchmarks under "
                "`select`, but this one has a benchmark under `report`: remove that"
            )

    @property
    def name(self) -> str:
        """Display name: arm, number and drawn values."""
        return self.arm

    @property
    def value_texts(self) -> dict[str, str]:
        """The drawn values by key, as text."""
        return {key: format_level(value) for key, value in self.values.items()}


@dataclass(frozen=True, kw_only=True)
class Search:
    """The state of one arm's search."""

    arm: Arm  # with the settings of the recipe and the study file
    draws: tuple[SearchTrial, ...]  # one per entry of `Tune.draws`; fingerprints may repeat
    figures: Mapping[str, float]  # fingerprint -> metric, where defined
    failed: Mapping[str, str]  # fingerprint -> reason
    is_finished: bool  # no draw is left to run
    chosen: SearchTrial | None

    @cached_property
    def trials(self) -> tuple[SearchTrial, ...]:
        """The draws without repeated fingerprints."""
        first_trials: dict[str, SearchTrial] = {}
        for trial in self.draws:
            first_trials.setdefault(trial.fingerprint, trial)
        return tuple(first_trials.values())

    @property
    def blocked(self) -> Blocked | None:
        """Why the arm's seeds cannot run; None if settings are chosen."""
        if self.chosen is not None:
            return None
        if not self.is_finished:
            return Blocked(reason="its search has not ended")
        undefined_count = len(self.trials) - len(self.failed)
        causes = []
        for reason in list(self.failed.values())[:1]:
            causes.append(f"{len(self.failed)} failed ({reason})")
        if undefined_count:
            causes.append(f"{undefined_count} had no defined figure")
        return Blocked(
            reason=f"its search has no result: of {len(self.trials)} trials {' and '.join(causes)}",
            failed=True,
        )


@dataclass(frozen=True, kw_only=True)
class TunedPlan(Plan):
    """The plan of a study with a `tune:` block."""

    searches: tuple[Search, ...]  # in the arms' order

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every trial that can run: the untrained model, the searches' and the seeds'."""
        base, *seeds = super().trials
        searched: dict[str, Trial] = {
            trial.fingerprint: trial for trial in self.iter_search_trials()
        }
        return (base, *searched.values(), *seeds)

    @property
    def all_trials(self) -> list[Trial]:
        """Every trial that can run, with duplicates, the searches' before the seeds'."""
        base, *seeds = super().all_trials
        return [base, *(trial for search in self.searches for trial in search.trials), *seeds]

    def iter_search_trials(self) -> Iterator[SearchTrial]:
        """Yield the trials of all searches draw by draw, so that all arms progress alike."""
        max_draws = max((len(search.draws) for search in self.searches), default=0)
        for number in range(1, max_draws + 1):
            for search in self.searches:
                yield from (trial for trial in search.trials if trial.number == number)


def plan_searches(plan: Plan) -> tuple[Search, ...]:
    """Return a plan's searches; empty without a `tune:` block."""
    return plan.searches if isinstance(plan, TunedPlan) else ()


def search_failures(plan: Plan) -> dict[str, str]:
    """Return arm -> reason, for each arm whose search failed."""
    return {
        search.arm.name: search.blocked.reason
        for search in plan_searches(plan)
        if search.blocked is not None and search.blocked.failed
    }


def assume_recipe_settings(plan: Plan) -> Plan:
    """Return a plan in which arms that are still searching use the recipe's settings.

    This is for cost estimates: the fingerprints of those trials are provisional.
    """
    if plan.study.tune is None:
        return plan
    return replace(
        plan,
        arms=tuple(
            replace(
                arm,
                trials=tuple(
                    trial
                    if trial.blocked is None or trial.blocked.failed
                    else replace(trial, blocked=None)
                    for trial in arm.trials
                ),
            )
            for arm in plan.arms
        ),
    )


def resolve_search(plan: Plan, ledger: Ledger) -> Plan:
    """Return a plan with the chosen settings of the arms whose search has ended.

    Args:
        plan: result of `make_plan` or of this function.
        ledger: the ledger.

    Raises:
        ConfigError: a draw makes an arm an invalid configuration.
    """
    tune = plan.study.tune
    if tune is None:
        return plan
    if isinstance(plan, TunedPlan):
        arm_draws = [(search.arm, search.draws) for search in plan.searches]
    else:
        arm_draws = _make_search_trials(plan, tune)
    searches = tuple(_judge_arm(arm, draws, tune.metric, ledger) for arm, draws in arm_draws)
    plan_fields = {field.name: getattr(plan, field.name) for field in fields(Plan)}
    plan_fields["arms"] = tuple(_resolve_arm(plan, search) for search in searches)
    baseline = next(search for search in searches if search.arm.baseline)
    # A placebo has the baseline's settings, and so its choice, without a search.
    placebos = [arm for arm in plan.arms if arm.placebo]
    plan_fields["arms"] += tuple(_resolve_arm(plan, replace(baseline, arm=arm)) for arm in placebos)
    return TunedPlan(**plan_fields, searches=searches)


def _make_search_trials(plan: Plan, tune: Tune) -> list[tuple[Arm, tuple[SearchTrial, ...]]]:
    """Return each arm with the trials of its draws.

    Raises:
        ConfigError: lists every draw that is not a valid configuration.
    """
    study = plan.study
    tune.check(study.benchmarks, (*study.seeds, *study.placebo_seeds))
    select_benchmarks = study.benchmarks.select_only
    evaluation = plan.base.config.evaluation
    evaluations = {
        f"{side}/{settings.name}": fingerprint(
            evaluation_identity(
                side, settings, plan.benchmarks[f"{side}/{settings.name}"], evaluation
            )
        )
        for side, settings in list_sides(select_benchmarks)
    }
    draws = tune.make_draws()
    arm_draws, problems = [], []
    for arm in plan.compared_arms:
        trials = []
        for number, values in enumerate(draws, start=1):
            label = f"{arm.name}: search {number} of {len(draws)} ({format_values(values)})"
            try:
                config = _override_config(
                    arm.trials[0].config, values, f"{study.source}: tune: {label}"
                )
            except ConfigError as error:
                problems += error.problems
                continue
            config = config.model_copy(update={"benchmarks": select_benchmarks, "seed": tune.seed})
            trials.append(
                SearchTrial(
                    fingerprint=_training_fingerprint(plan, config),
                    arm=label,
                    seed=tune.seed,
                    config=config,
                    evaluations=evaluations,
                    params=arm.params,
                    arm_name=arm.name,
                    number=number,
                    values=values,
                )
            )
        arm_draws.append((arm, tuple(trials)))
    if problems:
        raise ConfigError(problems)
    return arm_draws


def _judge_arm(
    arm: Arm, draws: tuple[SearchTrial, ...], metric: SelectMetric, ledger: Ledger
) -> Search:
    figures: dict[str, float] = {}
    failed: dict[str, str] = {}
    is_finished = True
    for trial in draws:
        record = ledger[trial.fingerprint]
        if record.is_done(trial):
            figure = _search_figure(trial, metric, ledger)
            if figure is not None:
                figures[trial.fingerprint] = figure
        elif record.history and _last_attempt(record.history).outcome == "failed":
            failed[trial.fingerprint] = record.failure or "no reason was noted"
        else:
            is_finished = False
    chosen: SearchTrial | None = None
    for trial in draws if is_finished else ():
        if trial.fingerprint in figures and (
            chosen is None
            or metric.is_better(figures[trial.fingerprint], figures[chosen.fingerprint])
        ):
            chosen = trial
    return Search(
        arm=arm, draws=draws, figures=figures, failed=failed, is_finished=is_finished, chosen=chosen
    )


def _search_figure(trial: SearchTrial, metric: SelectMetric, ledger: Ledger) -> float | None:
    """Return the search's metric of a trial, from its evaluation under `select` only."""
    scored = ledger[trial.fingerprint].evaluations[trial.evaluations[metric.key]]
    return scored.evaluation.metrics.get(metric.name)


def _last_attempt(history: Mapping[int, Any]) -> Any:
    return history[max(history)]


def _resolve_arm(plan: Plan, search: Search) -> Arm:
    """Return an arm with its chosen settings, or with its trials blocked."""
    arm, chosen = search.arm, search.chosen
    if chosen is None:
        blocked = search.blocked
        return replace(arm, trials=tuple(replace(trial, blocked=blocked) for trial in arm.trials))
    config = _override_config(arm.trials[0].config, chosen.values, plan.study.source)
    trials = []
    for trial in arm.trials:
        seed_config = config.model_copy(update={"seed": trial.seed})
        key = _training_fingerprint(plan, seed_config)
        trials.append(replace(trial, config=seed_config, fingerprint=key, blocked=None))
    return replace(arm, trials=tuple(trials), tuned=chosen.value_texts)


def _training_fingerprint(plan: Plan, config: TrialConfig) -> str:
    return fingerprint(plan.training_identity_of(config))


def _override_config(config: TrialConfig, values: Mapping[str, Any], source: str) -> TrialConfig:
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        set_key(tree, key, value)
    return parse_trial_config(tree, source)


def format_values(values: Mapping[str, Any]) -> str:
    """Format drawn values for people: "optimizer.lr=1e-05"."""
    return ", ".join(f"{key}={format_level(value)}" for key, value in values.items())


def _keys_not_under_select(evaluations: Mapping[str, str]) -> list[str]:
    return [key for key in evaluations if not key.startswith("select/")]
