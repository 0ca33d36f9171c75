"""Load a study file, and check it whole before anything runs.

Everything is checked before anything runs; all problems of a file are told at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import orchestrator
from chip_core import data, recipes
from chip_core.config.trial import LARGEST_SEED, BenchmarksConfig
from chip_core.config.validation import key_problem, set_key, trial_config
from chip_core.models import loading
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import expand_path
from chip_core.utils.registry import suggestion
from orchestrator.study.design import parse_layout
from orchestrator.study.metrics import (
    DeclaredFile,
    Wrong,
    benchmark_goals,
    parse_declared,
    parse_published,
)
from orchestrator.study.model import PLACEBO_SEEDS, Cell, Study, StudyChanges
from orchestrator.study.schema import StudyFile, follows, read_written
from orchestrator.study.search import parse_tune
from orchestrator.study.validate import check_early_stopping, parse_factors
from orchestrator.study.variant import merge_seeds, variant_name, variant_problems

STUDIES = Path(orchestrator.__file__).parent.parent / "ablations"
LARGEST_COUNT = 1000  # of seeds: who wants more has mistaken a seed for a count
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def find_study(name: str) -> Path:
    """Return a study's file, given its path or a shipped study's name.

    Raises:
        ConfigError: there is none.
    """
    path = expand_path(name)
    if os.path.isfile(path):  # a name that no file can have is no file
        return path
    shipped = {file.stem: file for file in STUDIES.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if path.parent == Path("ablations") and path.stem in shipped:
        return shipped[path.stem]  # the README's path, from anywhere
    if os.path.isdir(path):
        raise ConfigError([f"{name}: is a folder: {recipes.files_in(path, 'study file')}"])
    raise ConfigError([f"{name}: no such study file: {suggestion(name, shipped)}"])


def is_study(name: str) -> bool:
    """Return whether a study is found by a path or a shipped study's name."""
    try:
        find_study(name)
    except ConfigError:
        return False
    return True


def load_study(
    path: Path, changes: StudyChanges | None = None, *, elsewhere: bool = False
) -> Study:
    """Return a study, checked whole.

    Args:
        path: its file.
        changes: what the command line changes of it.
        elsewhere: whether its model and data lie on other machines, and are not looked for here.

    Raises:
        ConfigError: every problem at once, each `file: key.path: what, what would do`.
    """
    changes = changes or StudyChanges()
    source = str(path)
    written, problems, broken = read_written(path)
    of_shape = len(problems)

    def wrong(key: str, what: str) -> None:
        problems.append(f"{source}: {key}: {what}")

    if not _NAME.fullmatch(written.study):
        wrong("study", f"'{written.study}' is no name: use letters, digits, '-', '_' and '.'")
    base = _base(written, changes, path, problems, elsewhere)
    factors = parse_factors(written, base, source, problems, set_keys=tuple(changes.overrides))
    seeds = _seeds(written, changes, wrong)
    layout = parse_layout(written, factors, wrong)
    problems.extend(variant_problems(changes, factors, layout.grid.when))
    benchmarks, about = _benchmarks(written, base)
    goals = benchmark_goals(benchmarks, wrong)
    primary, secondary = parse_declared(about, written.secondary, goals, wrong)

    def cell(given: Mapping[str, Any], where: str) -> Cell | None:
        return layout.cell(given, where, wrong)

    published = parse_published(written.published, cell, goals, wrong)
    tune = parse_tune(
        written.tune,
        benchmarks=benchmarks,
        goals=goals,
        factors=factors,
        seeds=seeds,
        base=base,
        overrides=changes.overrides,
        wrong=wrong,
    )
    check_early_stopping(
        written.early_stopping, factors, goals, tuned=written.tune is not None, wrong=wrong
    )
    if problems:
        others = [line for line in problems[of_shape:] if not follows(line, source, broken)]
        raise ConfigError(dict.fromkeys([*problems[:of_shape], *others]))
    assert layout.baseline is not None, "what is wrong with a layout is told"
    return Study(
        name=variant_name(written.study, changes),
        question=written.question,
        recipe=changes.recipe or written.recipe,
        source=source,
        base=base,
        factors=factors,
        cells=layout.cells,
        seeds=seeds,
        baseline=layout.baseline,
        benchmarks=benchmarks,
        primary=primary,
        secondary=secondary,
        exploratory=written.exploratory,
        published=published,
        design=written.design,
        when=layout.grid.when,
        placebo=written.placebo,
        left_out=layout.left_out,
        tune=tune,
        budget=written.budget,
        limits=written.limits,
        early_stopping=written.early_stopping,
        changes=changes,
    )


def _base(
    written: StudyFile, changes: StudyChanges, path: Path, problems: list[str], elsewhere: bool
) -> dict[str, Any]:
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
    if written.evaluation is not None:
        tree["evaluation"] = written.evaluation.model_dump(mode="json", exclude_unset=True)
    for key, value in sorted(changes.overrides.items()):  # as the variant's name has them
        if key_problem(key) is None:
            set_key(tree, key, value)
    try:
        config = trial_config(tree, "--set")
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    if elsewhere:
        return tree
    for key, problem in (
        ("model.path", loading.problem(config.model)),
        ("data.source", data.problem(config.data)),
        ("objective", data.objective_problem(config.data, config.objective)),
        ("training.label_rule", loading.label_rule_problem(config)),
    ):
        if problem is not None:
            problems.append(f"{_origin(key, changes, file)}: {problem}")
    return tree


def _benchmarks(
    written: StudyFile, base: Mapping[str, Any]
) -> tuple[BenchmarksConfig, DeclaredFile | None]:
    """Return what models are asked and the metric the study is about: its own, or the recipe's."""
    own = written.benchmarks
    try:
        found = own or BenchmarksConfig.model_validate(base.get("benchmarks") or {})
    except ValidationError:  # told of the recipe
        found = BenchmarksConfig()
    about = written.primary
    if about is None and found.primary is not None:
        about = DeclaredFile(metric=found.primary)
    return found.model_copy(update={"primary": None}), about


def _origin(key: str, changes: StudyChanges, file: Path) -> str:
    """Return where a key got its value: the command line's, where it set that or its section."""
    section = key.split(".")[0]
    given = any(name.split(".")[0] == section for name in changes.overrides)
    return f"{'--set' if given else file}: {key}"


def _seeds(written: StudyFile, changes: StudyChanges, wrong: Wrong) -> tuple[int, ...]:
    seeds = _checked_seeds(written.seeds, "seeds", wrong)
    if changes.seeds is not None and seeds:
        given = _checked_seeds(list(changes.seeds), "seeds (from --seeds)", wrong)
        seeds = tuple(merge_seeds(seeds, given))
    if written.placebo and max(seeds, default=0) >= PLACEBO_SEEDS:
        wrong(
            "placebo", f"its seeds begin at {PLACEBO_SEEDS:,}: use smaller ones than {max(seeds):,}"
        )
    return seeds


def _checked_seeds(given: Any, where: str, wrong: Wrong) -> tuple[int, ...]:
    """Return distinct seeds; none where something is wrong with them."""
    if type(given) is int and given > LARGEST_COUNT:
        wrong(
            where, f"is a count of {given:,}, above {LARGEST_COUNT:,}: write [{given}] for a seed"
        )
        return ()
    seeds = list(range(given)) if type(given) is int else given
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        wrong(where, f"give a count or a list of whole numbers, not {given!r}")
        return ()
    if len(seeds) > LARGEST_COUNT:
        wrong(where, f"are {len(seeds):,}, above {LARGEST_COUNT:,}: give fewer")
        return ()
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    found = {
        "is empty: give at least one seed": not seeds,
        f"not distinct: {', '.join(map(str, repeated))} stands twice: remove one": bool(repeated),
        "a seed is negative: use 0 or more": any(seed < 0 for seed in seeds),
        f"a seed is above {LARGEST_SEED}: use a smaller one": any(
            seed > LARGEST_SEED for seed in seeds
        ),
    }
    for what, is_so in found.items():
        if is_so:
            wrong(where, what)
    return () if any(found.values()) else tuple(seeds)
