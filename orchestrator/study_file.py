"""The study file: read, and checked whole before anything runs.

Everything is checked before anything runs; all problems of a file are told at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

import orchestrator
from chip_core import data, recipes
from chip_core.config import LARGEST_SEED, BenchmarksConfig, TrialConfig
from chip_core.errors import ConfigError
from chip_core.files import expanded
from chip_core.models import loading
from chip_core.registry import suggestion
from chip_core.validation import explain, key_problem, set_key, trial_config
from orchestrator.study import Factor, Level, Study, excludes, level_text
from orchestrator.study_benchmarks import benchmark_goals
from orchestrator.study_declared import DeclaredFile, PublishedFile, declare, take_published

STUDIES = Path(orchestrator.__file__).parent.parent / "ablations"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the command line changes of a study file."""

    recipe: str | None = None
    seeds: Sequence[int] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def find_study(name: str) -> Path:
    """Return a study's file, given its path or a shipped study's name.

    Raises:
        ConfigError: there is none.
    """
    path = expanded(name)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in STUDIES.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if path.parent == Path("ablations") and path.stem in shipped:
        return shipped[path.stem]  # the README's path, from anywhere
    raise ConfigError([f"{name}: no such study file: {suggestion(name, shipped)}"])


def load_study(path: Path, changes: Changes | None = None) -> Study:
    """Return a study, checked whole.

    Raises:
        ConfigError: every problem at once, each `file: key.path: what, what would do`.
    """
    changes = changes or Changes()
    source = str(path)
    written, problems, broken = _read(path)

    def wrong(key: str, what: str) -> None:
        problems.append(f"{source}: {key}: {what}")

    if not _NAME.match(written.study):
        wrong("study", f"'{written.study}' is no name: use letters, digits, '-', '_' and '.'")
    base = _base(written, changes, path, problems)
    factors = _factors(written, base, source, problems)
    _check_overrides(changes, problems)
    seeds = _seeds(written, changes, wrong)
    exclude = _exclude(written, factors, wrong)
    baseline = _baseline(written, factors, exclude, wrong)
    benchmarks = written.benchmarks or BenchmarksConfig()
    goals = benchmark_goals(benchmarks, wrong)
    primary, secondary = declare(written.primary, written.secondary, goals, wrong)

    def cell(given: Mapping[str, Any], where: str) -> dict[str, str]:
        return _cell(given, factors, exclude, where, wrong)

    published = take_published(written.published, cell, goals, wrong)
    if problems:
        raise ConfigError(
            line for line in dict.fromkeys(problems) if not _follows(line, source, broken)
        )
    return Study(
        name=_variant_name(written.study, changes),
        question=written.question,
        recipe=changes.recipe or written.recipe,
        source=source,
        base=base,
        factors=factors,
        exclude=exclude,
        seeds=seeds,
        baseline=baseline,
        benchmarks=benchmarks,
        primary=primary,
        secondary=secondary,
        exploratory=written.exploratory,
        published=published,
    )


class _StudyFile(BaseModel):
    """The file as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    question: str = ""
    recipe: str = "shapes"
    factors: dict[str, Any]  # a list of levels, or levels by name: checked with the recipe
    exclude: list[dict[str, Any]] = []
    seeds: Any = [0]  # a count, or a list
    baseline: dict[str, Any] | None = None
    benchmarks: BenchmarksConfig | None = None
    primary: DeclaredFile | None = None
    secondary: list[DeclaredFile] = []
    exploratory: bool = False
    published: list[PublishedFile] = []


def _read(path: Path) -> tuple[_StudyFile, list[str], frozenset[str]]:
    """Return a file as it is written, what is wrong with its shape, and which keys are.

    Keys that are wrong are left out of what is returned, so that the others are checked all the
    same and every problem is told at once.
    """
    raw = recipes.read_yaml(path)
    try:
        return _StudyFile.model_validate(raw), [], frozenset()
    except ValidationError as error:
        problems = explain(error, _StudyFile, str(path))
        broken = frozenset(str(problem["loc"][0]) for problem in error.errors())
    kept = {key: value for key, value in raw.items() if key not in broken}
    needed = {"study": "unnamed", "factors": {}}
    return _StudyFile.model_validate({**needed, **kept}), problems, broken


def _follows(line: str, source: str, broken: frozenset[str]) -> bool:
    """Return whether a problem is only there because a key was left out as broken."""
    causes = {
        "factors": ("factors: is empty", "baseline", "exclude", "published"),
        "benchmarks": ("primary.metric: unknown", "secondary", "published"),
    }
    return any(
        line.startswith(f"{source}: {start}") for key in broken for start in causes.get(key, ())
    )


def _variant_name(study: str, changes: Changes) -> str:
    name = study
    if changes.recipe is not None:
        name += f"@{Path(changes.recipe).stem if '/' in changes.recipe else changes.recipe}"
    for key, value in sorted(changes.overrides.items()):
        name += f"+{key}={re.sub(r'[^A-Za-z0-9_.,-]', '-', level_text(value))}"
    return name


def _base(written: _StudyFile, changes: Changes, path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the recipe's tree with the command line's overrides, checked."""
    name = changes.recipe or written.recipe
    try:
        file = recipes.find(name, None if changes.recipe else path.parent)
        tree = recipes.read_yaml(file)
    except ConfigError as error:
        where = "--recipe" if changes.recipe else f"{path}: recipe"
        problems.extend(
            line
            if line.startswith(str(name)) and ":" in line[: len(str(name)) + 1]
            else f"{where}: {line}"
            for line in error.problems
        )
        return {}
    try:
        config = trial_config(tree, str(file))
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    for key, value in changes.overrides.items():
        if key_problem(key) is None:
            set_key(tree, key, value)
    try:
        config = trial_config(tree, "--set")
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    broken = loading.problem(config.model)
    if broken is not None:
        problems.append(f"{file}: model.path: {broken}")
    missing = data.problem(config.data)
    if missing is not None:
        problems.append(f"{file}: data.source: {missing}")
    unknown = loading.label_rule_problem(config)
    if unknown is not None:
        problems.append(f"{file}: training.label_rule: {unknown}")
    return tree


def _factors(
    written: _StudyFile, base: dict[str, Any], source: str, problems: list[str]
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
        loading.label_rule_problem(config) if sections & {"model", "training"} else None,
    ):
        if broken is not None:
            problems.append(f"{source}: {key}: {broken}")


def _check_overrides(changes: Changes, problems: list[str]) -> None:
    for key in changes.overrides:
        complaint = key_problem(key)
        if complaint is not None:
            problems.append(f"--set: {key}: {complaint}")


def _seeds(written: _StudyFile, changes: Changes, wrong: Any) -> tuple[int, ...]:
    given = written.seeds if changes.seeds is None else list(changes.seeds)
    where = "seeds" if changes.seeds is None else "seeds (from --seeds)"
    seeds = list(range(given)) if type(given) is int else given
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        wrong(where, f"give a count or a list of whole numbers, not {given!r}")
        return ()
    if not seeds:
        wrong(where, "is empty: give at least one seed")
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        wrong(where, f"not distinct: {', '.join(map(str, repeated))} stands twice: remove one")
    if any(seed < 0 for seed in seeds):
        wrong(where, "a seed is negative: use 0 or more")
    if any(seed > LARGEST_SEED for seed in seeds):
        wrong(where, f"a seed is above {LARGEST_SEED}: use a smaller one")
    return tuple(seeds)


def _patterns(
    given: Mapping[str, Any], factors: Sequence[Factor], where: str, wrong: Any
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


def _exclude(
    written: _StudyFile, factors: Sequence[Factor], wrong: Any
) -> tuple[Mapping[str, frozenset[str]], ...]:
    return tuple(
        _patterns(entry, factors, f"exclude[{place}]", wrong)
        for place, entry in enumerate(written.exclude)
        if entry
    )


def _baseline(
    written: _StudyFile,
    factors: Sequence[Factor],
    exclude: Sequence[Mapping[str, frozenset[str]]],
    wrong: Any,
) -> dict[str, str]:
    first = {factor.name: factor.levels[0].name for factor in factors if factor.levels}
    if written.baseline is None:
        return first
    return {**first, **_cell(written.baseline, factors, exclude, "baseline", wrong)}


def _cell(
    given: Mapping[str, Any],
    factors: Sequence[Factor],
    exclude: Sequence[Mapping[str, frozenset[str]]],
    where: str,
    wrong: Any,
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
