"""The grid of a study file: factors, their levels, and which cells are left out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from chip_core import data
from chip_core.config import TrialConfig
from chip_core.models import loading
from chip_core.registry import suggestion
from chip_core.validation import explain, key_problem, set_key
from orchestrator.study import Factor, Level, excludes, level_text
from orchestrator.study_declared import Wrong
from orchestrator.study_written import StudyFile


def take_factors(
    written: StudyFile, base: dict[str, Any], source: str, problems: list[str]
) -> tuple[Factor, ...]:
    """Return the factors, each level checked by itself on the recipe."""
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
            continue
        if not given:
            problems.append(f"{source}: {key}: has no levels: give at least one")
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
                _check_level(level, f"{key}[{place}]", base, source, problems)
        factors.append(Factor(name=name, levels=tuple(levels)))
    return tuple(factors)


def _check_level(
    level: Level, key: str, base: dict[str, Any], source: str, problems: list[str]
) -> None:
    tree = copy.deepcopy(base)
    for dotted, value in level.overrides.items():
        set_key(tree, dotted, value)
    try:
        config = TrialConfig.model_validate(tree)
    except ValidationError as error:
        for line in explain(error, TrialConfig, ""):
            path, _, sentence = line.removeprefix(": ").partition(": ")
            problems.append(f"{source}: {key}: {sentence or path}")
        return
    sections = {dotted.split(".")[0] for dotted in level.overrides}
    for broken in (
        loading.problem(config.model) if "model" in sections else None,
        data.problem(config.data) if "data" in sections else None,
    ):
        if broken is not None:
            problems.append(f"{source}: {key}: {broken}")


def _patterns(
    given: Mapping[str, Any], factors: Sequence[Factor], where: str, wrong: Wrong
) -> dict[str, frozenset[str]]:
    """Return factor -> names of levels for a mapping as written, complaining of unknown ones."""
    known = {factor.name: [level.name for level in factor.levels] for factor in factors}
    pattern: dict[str, frozenset[str]] = {}
    for name, value in given.items():
        if name not in known:
            wrong(f"{where}.{name}", f"unknown factor: {suggestion(name, known)}")
            continue
        labels = [level_text(entry) for entry in (value if isinstance(value, list) else [value])]
        for label in labels:
            if label not in known[name]:
                wrong(
                    f"{where}.{name}", f"unknown level '{label}': {suggestion(label, known[name])}"
                )
        pattern[name] = frozenset(labels)
    return pattern


def take_exclude(
    written: StudyFile, factors: Sequence[Factor], wrong: Wrong
) -> tuple[Mapping[str, frozenset[str]], ...]:
    """Return the patterns of cells to leave out."""
    return tuple(
        _patterns(entry, factors, f"exclude[{place}]", wrong)
        for place, entry in enumerate(written.exclude)
        if entry
    )


def take_baseline(
    written: StudyFile,
    factors: Sequence[Factor],
    exclude: Sequence[Mapping[str, frozenset[str]]],
    wrong: Wrong,
) -> dict[str, str]:
    """Return the baseline's cell; the first of the grid where the file names none."""
    first = {factor.name: factor.levels[0].name for factor in factors if factor.levels}
    if written.baseline is None:
        return first
    return {**first, **one_cell(written.baseline, factors, exclude, "baseline", wrong)}


def one_cell(
    given: Mapping[str, Any],
    factors: Sequence[Factor],
    exclude: Sequence[Mapping[str, frozenset[str]]],
    where: str,
    wrong: Wrong,
) -> dict[str, str]:
    """Return one cell, factor -> level, complaining of what is no cell of the grid."""
    pattern = _patterns(given, factors, where, wrong)
    for factor in factors:
        if factor.name not in given:
            kind = "a baseline" if where == "baseline" else "an arm"
            wrong(where, f"names no level of '{factor.name}': {kind} is one cell")
    cell = {name: min(labels) for name, labels in pattern.items()}
    if any(excludes(entry, cell) for entry in exclude):
        wrong(where, "this cell is excluded: choose a cell of the grid")
    return cell
