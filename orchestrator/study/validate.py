"""Check a study's factors and its `early_stopping:` block against the recipe."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from chip_core import data
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import explain_errors, find_key_problem, set_key
from chip_core.models import loading
from chip_core.utils.registry import suggest
from orchestrator.study.early_stopping import TRAINING_METRICS, EarlyStopping
from orchestrator.study.editor_schema import STUDY_SECTIONS
from orchestrator.study.metrics import Goal, ProblemReporter
from orchestrator.study.model import Factor, Level, format_level
from orchestrator.study.schema import StudyFile


def parse_factors(
    study_file: StudyFile,
    base_tree: dict[str, Any],
    source: str,
    problems: list[str],
    *,
    set_keys: Sequence[str] = (),
) -> tuple[Factor, ...]:
    """Return the factors, and check the recipe with each of their levels separately.

    Args:
        study_file: parsed study file.
        base_tree: the recipe as a tree, with what the command line sets.
        source: path of the study file.
        problems: list to which problems are appended.
        set_keys: keys that the command line sets, named in the problem of an invalid level.
    """
    suffix = f" (with --set {', '.join(set_keys)})" if set_keys else ""
    factors: list[Factor] = []
    if not study_file.factors:
        problems.append(f"{source}: factors: is empty: name a key of the recipe and its levels")
    for name, raw_levels in study_file.factors.items():
        key = f"factors.{name}"
        is_named = isinstance(raw_levels, dict) and all(
            isinstance(overrides, dict) for overrides in raw_levels.values()
        )
        if not (isinstance(raw_levels, list) or is_named):
            problems.append(
                f"{source}: {key}: give a list of levels, or levels by name, each a set of "
                f"overrides, not {raw_levels!r}"
            )
            factors.append(Factor(name=name, levels=()))
            continue
        if not raw_levels:
            problems.append(f"{source}: {key}: has no levels: give at least one")
            factors.append(Factor(name=name, levels=()))
            continue
        if isinstance(raw_levels, dict):
            levels = [
                Level(name=label, overrides=overrides) for label, overrides in raw_levels.items()
            ]
            keys = sorted({dotted for level in levels for dotted in level.overrides})
        else:
            levels = [
                Level(name=format_level(value), overrides={name: value}) for value in raw_levels
            ]
            keys = [name]
        unknown_keys = [key_error for dotted in keys if (key_error := find_key_problem(dotted))]
        problems.extend(f"{source}: {key}: {key_error}" for key_error in unknown_keys)
        forbidden_keys = [dotted for dotted in keys if dotted.split(".")[0] in STUDY_SECTIONS]
        problems.extend(
            f"{source}: {key}: '{dotted}' cannot be a factor: use the study's own "
            f"`{dotted.split('.')[0]}{'s' if dotted == 'seed' else ''}:`"
            for dotted in forbidden_keys
        )
        names = [level.name for level in levels]
        for repeated in sorted({label for label in names if names.count(label) > 1}):
            problems.append(f"{source}: {key}: the level '{repeated}' is listed twice: remove one")
        if base_tree and not unknown_keys and not forbidden_keys:
            for index, level in enumerate(levels):
                for problem in _iter_level_problems(level, base_tree):
                    problems.append(f"{source}: {key}[{index}]: {problem}{suffix}")
        factors.append(Factor(name=name, levels=tuple(levels)))
    return tuple(factors)


def _iter_level_problems(level: Level, base_tree: dict[str, Any]) -> Iterator[str]:
    tree = copy.deepcopy(base_tree)
    for dotted, value in level.overrides.items():
        set_key(tree, dotted, value)
    try:
        config = TrialConfig.model_validate(tree)
    except ValidationError as error:
        for line in explain_errors(error, TrialConfig, ""):
            path, _, sentence = line.removeprefix(": ").partition(": ")
            yield sentence or path
        return
    sections = {dotted.split(".")[0] for dotted in level.overrides}
    for problem in (
        loading.find_model_problem(config.model) if "model" in sections else None,
        data.find_source_problem(config.data) if "data" in sections else None,
        data.find_objective_problem(config.data, config.objective)
        if sections & {"data", "objective"}
        else None,
        loading.find_label_rule_problem(config) if sections & {"model", "training"} else None,
    ):
        if problem is not None:
            yield problem


def check_early_stopping(
    rule: EarlyStopping | None,
    factors: Sequence[Factor],
    goals: Mapping[str, Goal],
    *,
    is_tuned: bool,
    report_problem: ProblemReporter,
) -> None:
    """Report a rule that does not suit the study, such as one on a metric of `report`.

    Args:
        rule: rule of the study file.
        factors: the study's factors.
        goals: the metrics of its benchmarks.
        is_tuned: whether the study has a `tune:` block.
        report_problem: called with (key, problem).
    """
    if rule is None:
        return
    if is_tuned:
        report_problem(
            "early_stopping",
            "cannot be used with `tune:`: draws of one arm would cut those of another, but every "
            "arm must have the same search: leave out one of the two",
        )
    choices = suggest(rule.metric, TRAINING_METRICS)
    key = "early_stopping.metric"
    if rule.metric in goals and rule.metric.startswith("select/"):
        report_problem(
            key,
            f"'{rule.metric}' is only known after a training has ended, too late to cut it: "
            f"{choices}",
        )
    elif rule.metric in goals:
        report_problem(
            key, f"'{rule.metric}' is under `report`, which must not decide anything: {choices}"
        )
    elif rule.metric not in TRAINING_METRICS:
        report_problem(key, f"unknown training figure '{rule.metric}': {choices}")
    elif rule.metric == "loss":
        objective_factors = [factor.name for factor in factors if _varies_objective(factor)]
        if objective_factors:
            report_problem(
                key,
                "losses of different objectives cannot be compared (factor "
                f"'{objective_factors[0]}'): use reward/accuracy",
            )


def _varies_objective(factor: Factor) -> bool:
    keys = {key for level in factor.levels for key in level.overrides}
    return any(key.partition(".")[0] == "objective" for key in keys)
