"""Compare two studies: shared trainings, different keys and shared figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from chip_core.config.identity import fingerprint
from orchestrator.plan.plan import Arm, Plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.editor_schema import STUDY_SECTIONS
from orchestrator.study.model import format_level

_MAX_PRINTED = 12  # entries of a list that are printed; --json has all


def compare_plans(first: Plan, second: Plan, ledger: Ledger) -> dict[str, Any]:
    """Return what two studies share and how they differ, as plain data.

    Arms are the same if their training is, whatever their names and seeds.
    """
    first_arms, second_arms = _arms_by_training(first), _arms_by_training(second)
    cells = {frozenset(cell.items()): arm for arm in second.arms for cell in arm.cells}
    changed: list[dict[str, Any]] = []
    for arm in (arm for key, arm in first_arms.items() if key not in second_arms):
        namesake = next(
            (
                counterpart
                for cell in arm.cells
                if (counterpart := cells.get(frozenset(cell.items())))
            ),
            None,
        )
        if namesake is not None:
            keys = _differing_values(_flatten_config(arm), _flatten_config(namesake))
            changed.append({"arms": [arm.name, namesake.name], "keys": keys})
    paired_first = {name for entry in changed for name in entry["arms"][:1]}
    paired_second = {entry["arms"][1] for entry in changed}
    return {
        "studies": [first.study.name, second.study.name],
        "same": [
            {"arms": [arm.name, second_arms[key].name]}
            for key, arm in first_arms.items()
            if key in second_arms
        ],
        "changed": changed,
        "only_first": [
            arm.name
            for key, arm in first_arms.items()
            if key not in second_arms and arm.name not in paired_first
        ],
        "only_second": [
            arm.name
            for key, arm in second_arms.items()
            if key not in first_arms and arm.name not in paired_second
        ],
        "recipe_keys": _differing_values(_flatten_base(first), _flatten_base(second)),
        "study_keys": _differing_values(_study_settings(first), _study_settings(second)),
        "shared_figures": list(_iter_shared_figures(first, second, ledger)),
    }


def difference_lines(differences: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Format the result of `compare_plans` for the terminal."""
    first, second = differences["studies"]
    yield Text(f"{first} and {second}", style="bold")
    for title, keys in (
        ("keys of the study that differ", differences["study_keys"]),
        ("keys of the recipe that differ", differences["recipe_keys"]),
    ):
        yield Text(f"{title}: {'none' if not keys else ''}".rstrip())
        for key, values in keys.items():
            yield Text(f"  {key}: {_format_value(values[0])} → {_format_value(values[1])}")
    same = [_format_pair(entry["arms"]) for entry in differences["same"]]
    yield Text(f"the same training: {_format_names(same)}")
    for entry in differences["changed"][:_MAX_PRINTED]:
        keys = ", ".join(
            f"{key} {_format_value(old_value)} → {_format_value(new_value)}"
            for key, (old_value, new_value) in entry["keys"].items()
        )
        yield Text(
            f"the same cell, but a different training: {_format_pair(entry['arms'])} ({keys})"
        )
    if len(differences["changed"]) > _MAX_PRINTED:
        yield Text(f"… and {len(differences['changed']) - _MAX_PRINTED} more of these")
    yield Text(f"only in {first}: {_format_names(differences['only_first'])}")
    yield Text(f"only in {second}: {_format_names(differences['only_second'])}")
    shared = [
        f"{entry['trial']} ({entry['fingerprint'][:8]})" for entry in differences["shared_figures"]
    ]
    yield Text(f"recorded figures in both reports: {_format_names(shared)}")


def _arms_by_training(plan: Plan) -> dict[str, Arm]:
    """Return a plan's arms by the fingerprint of their training without the seed."""
    arms = {}
    for arm in plan.compared_arms:
        config = arm.trials[0].config
        if arm.trials[0].blocked is not None:  # its settings are still to be chosen
            arms[arm.trials[0].fingerprint] = arm
            continue
        arms[fingerprint({**plan.training_identity_of(config), "seed": None})] = arm
    return arms


def _iter_shared_figures(first: Plan, second: Plan, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Yield the recorded figures that are in both studies' tables."""
    second_trials = {trial.fingerprint: trial for trial in second.trials}
    for trial in first.trials:
        counterpart = second_trials.get(trial.fingerprint)
        if counterpart is None:
            continue
        record = ledger[trial.fingerprint]
        fingerprints = set(trial.evaluations.values()) & set(counterpart.evaluations.values())
        figures = {
            name: value
            for key in sorted(fingerprints & set(record.evaluations))
            for name, value in record.evaluations[key].evaluation.metrics.items()
        }
        if figures:
            yield {
                "trial": trial.name,
                "fingerprint": trial.fingerprint,
                "executed_for": record.study,
                "figures": figures,
            }


def _flatten_base(plan: Plan) -> dict[str, Any]:
    return _flatten(plan.base.config.model_dump(mode="json", exclude=set(STUDY_SECTIONS)))


def _flatten_config(arm: Arm) -> dict[str, Any]:
    return _flatten(arm.trials[0].config.model_dump(mode="json", exclude=set(STUDY_SECTIONS)))


def _study_settings(plan: Plan) -> dict[str, Any]:
    """Return what a study file sets apart from its recipe."""
    study = plan.study
    declared = {entry.metric: entry.smallest_difference for entry in study.declared_metrics}
    return {
        "question": study.question,
        "recipe": study.recipe,
        "factors": {
            factor.name: [level.name for level in factor.levels] for factor in study.factors
        },
        "design": study.design,
        "seeds": list(study.seeds),
        "baseline": dict(study.baseline),
        "benchmarks": study.benchmarks.model_dump(mode="json", exclude_defaults=True),
        "evaluation": plan.base.config.evaluation.model_dump(mode="json", exclude_defaults=True),
        "primary": None if study.primary is None else study.primary.metric,
        "declared": declared,
        "exploratory": study.exploratory,
        "placebo": study.placebo,
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differing_values(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [first.get(key), second.get(key)]
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    }


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{key}: {_format_value(entry)}" for key, entry in value.items()) + "}"
        )
    return f"[{format_level(value)}]" if isinstance(value, list) else format_level(value)


def _format_pair(names: Sequence[str]) -> str:
    return names[0] if names[0] == names[1] else f"{names[0]} = {names[1]}"


def _format_names(names: Sequence[str]) -> str:
    remainder = f"; … and {len(names) - _MAX_PRINTED} more" if len(names) > _MAX_PRINTED else ""
    listed = "; ".join(names[:_MAX_PRINTED]) or "none"
    return f"{len(names)}: {listed}{remainder}" if names else "none"
