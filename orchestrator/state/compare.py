"""Compare two studies: shared trainings, different keys and shared figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from chip_core.config.identity import fingerprint
from orchestrator.plan.plan import Arm, Plan
from orchestrator.state.ledger import Ledger
from orchestrator.study.editor_schema import OWN
from orchestrator.study.model import level_text

_SHOWN = 12  # entries of a list that are printed; --json has all


def differences(one: Plan, other: Plan, ledger: Ledger) -> dict[str, Any]:
    """Return what two studies share and how they differ, as plain data.

    Arms are the same if their training is, whatever their names and seeds.
    """
    ours, theirs = _by_training(one), _by_training(other)
    cells = {frozenset(cell.items()): arm for arm in other.arms for cell in arm.cells}
    changed: list[dict[str, Any]] = []
    for arm in (arm for key, arm in ours.items() if key not in theirs):
        namesake = next(
            (found for cell in arm.cells if (found := cells.get(frozenset(cell.items())))), None
        )
        if namesake is not None:
            keys = _differing(_config(arm), _config(namesake))
            changed.append({"arms": [arm.name, namesake.name], "keys": keys})
    paired = {name for entry in changed for name in entry["arms"][:1]}
    paired_there = {entry["arms"][1] for entry in changed}
    return {
        "studies": [one.study.name, other.study.name],
        "same": [
            {"arms": [arm.name, theirs[key].name]} for key, arm in ours.items() if key in theirs
        ],
        "changed": changed,
        "only_first": [
            arm.name for key, arm in ours.items() if key not in theirs and arm.name not in paired
        ],
        "only_second": [
            arm.name
            for key, arm in theirs.items()
            if key not in ours and arm.name not in paired_there
        ],
        "recipe_keys": _differing(_base(one), _base(other)),
        "study_keys": _differing(_study(one), _study(other)),
        "shared_figures": list(_shared(one, other, ledger)),
    }


def difference_lines(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Format the result of `differences` for the terminal."""
    first, second = found["studies"]
    yield Text(f"{first} and {second}", style="bold")
    for title, keys in (
        ("keys of the study that differ", found["study_keys"]),
        ("keys of the recipe that differ", found["recipe_keys"]),
    ):
        yield Text(f"{title}: {'none' if not keys else ''}".rstrip())
        for key, values in keys.items():
            yield Text(f"  {key}: {_text(values[0])} → {_text(values[1])}")
    same = [_pair(entry["arms"]) for entry in found["same"]]
    yield Text(f"the same training: {_names(same)}")
    for entry in found["changed"][:_SHOWN]:
        keys = ", ".join(
            f"{key} {_text(one)} → {_text(other)}" for key, (one, other) in entry["keys"].items()
        )
        yield Text(f"the same cell, another training: {_pair(entry['arms'])} ({keys})")
    if len(found["changed"]) > _SHOWN:
        yield Text(f"… and {len(found['changed']) - _SHOWN} more of these")
    yield Text(f"only in {first}: {_names(found['only_first'])}")
    yield Text(f"only in {second}: {_names(found['only_second'])}")
    shared = [f"{entry['trial']} ({entry['fingerprint'][:8]})" for entry in found["shared_figures"]]
    yield Text(f"recorded figures that both report: {_names(shared)}")


def _by_training(plan: Plan) -> dict[str, Arm]:
    """Return a plan's arms by the fingerprint of their training without the seed."""
    found = {}
    for arm in plan.compared:
        config = arm.trials[0].config
        if arm.trials[0].blocked is not None:  # its settings are still to be chosen
            found[arm.trials[0].fingerprint] = arm
            continue
        found[fingerprint({**plan.training(config), "seed": None})] = arm
    return found


def _shared(one: Plan, other: Plan, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Yield the recorded figures that are in both studies' tables."""
    theirs = {trial.fingerprint: trial for trial in other.trials}
    for trial in one.trials:
        again = theirs.get(trial.fingerprint)
        if again is None:
            continue
        record = ledger[trial.fingerprint]
        fingerprints = set(trial.evaluations.values()) & set(again.evaluations.values())
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


def _base(plan: Plan) -> dict[str, Any]:
    return _flat(plan.base.config.model_dump(mode="json", exclude=set(OWN)))


def _config(arm: Arm) -> dict[str, Any]:
    return _flat(arm.trials[0].config.model_dump(mode="json", exclude=set(OWN)))


def _study(plan: Plan) -> dict[str, Any]:
    """Return what a study file sets apart from its recipe."""
    study = plan.study
    declared = {entry.metric: entry.smallest_difference for entry in study.declared}
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


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        key: [one.get(key), other.get(key)]
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(below)}" for key, below in value.items()) + "}"
    return f"[{level_text(value)}]" if isinstance(value, list) else level_text(value)


def _pair(names: Sequence[str]) -> str:
    return names[0] if names[0] == names[1] else f"{names[0]} = {names[1]}"


def _names(names: Sequence[str]) -> str:
    more = f"; … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = "; ".join(names[:_SHOWN]) or "none"
    return f"{len(names)}: {listed}{more}" if names else "none"
