"""The factors of a study file and their levels, each checked on the recipe."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from chip_core import data
from chip_core.config import TrialConfig
from chip_core.models import loading
from chip_core.validation import explain, key_problem, set_key
from orchestrator.study import Factor, Level, level_text
from orchestrator.study_written import StudyFile


def take_factors(
    written: StudyFile,
    base: dict[str, Any],
    source: str,
    problems: list[str],
    *,
    set_keys: Sequence[str] = (),
) -> tuple[Factor, ...]:
    """Return the factors, each level checked by itself on the recipe.

    Args:
        written: the file.
        base: the recipe's tree, with what the command line sets.
        source: the file's path.
        problems: gets what is wrong.
        set_keys: the keys that the command line sets: told beside a level that fails.
    """
    beside = f" (with --set {', '.join(set_keys)})" if set_keys else ""
    factors: list[Factor] = []
    if not written.factors:
        problems.append(f"{source}: factors: is empty: name a key of the recipe and its levels")
    for name, given in written.factors.items():
        key = f"factors.{name}"
        named = isinstance(given, dict) and all(isinstance(sets, dict) for sets in given.values())
        if not (isinstance(given, list) or named):
            problems.append(
                f"{source}: {key}: give a list of levels, or levels by name, each a set of "
                f"overrides, not {given!r}"
            )
            factors.append(Factor(name=name, levels=()))
            continue
        if not given:
            problems.append(f"{source}: {key}: has no levels: give at least one")
            factors.append(Factor(name=name, levels=()))
            continue
        if isinstance(given, dict):
            levels = [Level(name=label, overrides=sets) for label, sets in given.items()]
            keys = sorted({dotted for level in levels for dotted in level.overrides})
        else:
            levels = [Level(name=level_text(value), overrides={name: value}) for value in given]
            keys = [name]
        unknown = [complaint for dotted in keys if (complaint := key_problem(dotted))]
        problems.extend(f"{source}: {key}: {complaint}" for complaint in unknown)
        forbidden = [dotted for dotted in keys if dotted.split(".")[0] in ("seed", "benchmarks")]
        problems.extend(
            f"{source}: {key}: '{dotted}' is no factor: use the study's own `{dotted.split('.')[0]}"
            f"{'s' if dotted == 'seed' else ''}:`"
            for dotted in forbidden
        )
        names = [level.name for level in levels]
        for repeated in sorted({label for label in names if names.count(label) > 1}):
            problems.append(f"{source}: {key}: the level '{repeated}' stands twice: remove one")
        if base and not unknown and not forbidden:
            for place, level in enumerate(levels):
                for problem in _level_problems(level, base):
                    problems.append(f"{source}: {key}[{place}]: {problem}{beside}")
        factors.append(Factor(name=name, levels=tuple(levels)))
    return tuple(factors)


def _level_problems(level: Level, base: dict[str, Any]) -> Iterator[str]:
    tree = copy.deepcopy(base)
    for dotted, value in level.overrides.items():
        set_key(tree, dotted, value)
    try:
        config = TrialConfig.model_validate(tree)
    except ValidationError as error:
        for line in explain(error, TrialConfig, ""):
            path, _, sentence = line.removeprefix(": ").partition(": ")
            yield sentence or path
        return
    sections = {dotted.split(".")[0] for dotted in level.overrides}
    for broken in (
        loading.problem(config.model) if "model" in sections else None,
        data.problem(config.data) if "data" in sections else None,
        loading.label_rule_problem(config) if sections & {"model", "training"} else None,
    ):
        if broken is not None:
            yield broken
