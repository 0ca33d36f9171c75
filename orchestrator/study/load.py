"""Load and check a study file.

Everything is checked before anything runs, and all problems of a file are reported at once.
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
from chip_core.config.validation import key_problem, parse_trial_config, set_key
from chip_core.models import loading
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import expand_path
from chip_core.utils.registry import suggest
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
LARGEST_COUNT = 1000  # of seeds; a larger count is probably a seed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def find_study(name: str) -> Path:
    """Return the path of a study file, given the path or the name of a shipped study.

    Raises:
        ConfigError: there is none.
    """
    path = expand_path(name)
    if os.path.isfile(path):  # False, too, for a name that no file can have
        return path
    shipped = {file.stem: file for file in STUDIES.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if path.parent == Path("ablations") and path.stem in shipped:
        return shipped[path.stem]  # the path in the README, from any folder
    if os.path.isdir(path):
        raise ConfigError(
            [f"{name}: is a folder: {recipes.suggest_yaml_files(path, 'study file')}"]
        )
    raise ConfigError([f"{name}: no such study file: {suggest(name, shipped)}"])


def is_study(name: str) -> bool:
    """Return whether a study is found by a path or by the name of a shipped study."""
    try:
        find_study(name)
    except ConfigError:
        return False
    return True


def load_study(
    path: Path, changes: StudyChanges | None = None, *, elsewhere: bool = False
) -> Study:
    """Load and check a study.

    Args:
        path: study file.
        changes: what the command line changes in it.
        elsewhere: whether its model and data are on other machines, and are not checked here.

    Raises:
        ConfigError: lists every problem as `file: key.path: problem, remedy`.
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
    """Return the checked recipe as a tree, with the command line's overrides."""
    name = changes.recipe or written.recipe
    try:
        file = recipes.find_recipe(name, None if changes.recipe else path.parent)
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
        config = parse_trial_config(tree, str(file))
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    if written.evaluation is not None:
        tree["evaluation"] = written.evaluation.model_dump(mode="json", exclude_unset=True)
    for key, value in sorted(changes.overrides.items()):  # the order in the variant's name
        if key_problem(key) is None:
            set_key(tree, key, value)
    try:
        config = parse_trial_config(tree, "--set")
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
    """Return the benchmarks and the primary metric of the study, or else of the recipe."""
    own = written.benchmarks
    try:
        found = own or BenchmarksConfig.model_validate(base.get("benchmarks") or {})
    except ValidationError:  # reported when the recipe is checked
        found = BenchmarksConfig()
    about = written.primary
    if about is None and found.primary is not None:
        about = DeclaredFile(metric=found.primary)
    return found.model_copy(update={"primary": None}), about


def _origin(key: str, changes: StudyChanges, file: Path) -> str:
    """Return where a key's value comes from: `--set` if it sets its section, else the file."""
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
    """Return distinct seeds, or none if there is a problem with them."""
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
