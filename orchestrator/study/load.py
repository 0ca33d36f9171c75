"""Load and check a study file.

Everything is checked before anything runs, and all problems of a file are reported at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import orchestrator
from chip_core import data, recipes
from chip_core.config.trial import LARGEST_SEED, BenchmarksConfig
from chip_core.config.validation import find_key_problem, parse_trial_config, set_key
from chip_core.models import loading
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import expand_path
from chip_core.utils.registry import suggest
from orchestrator.study.design import parse_layout
from orchestrator.study.metrics import (
    DeclaredFile,
    ProblemReporter,
    metric_goals,
    parse_declared_metrics,
    parse_published,
)
from orchestrator.study.model import PLACEBO_SEED_OFFSET, Study, StudyChanges
from orchestrator.study.schema import StudyFile, is_consequence, read_study_file
from orchestrator.study.search import parse_tune
from orchestrator.study.validate import check_early_stopping, parse_factors
from orchestrator.study.variant import iter_variant_problems, merge_seeds, variant_name

STUDIES_FOLDER = Path(orchestrator.__file__).parent.parent / "ablations"
MAX_SEED_COUNT = 1000  # of seeds; a larger count is probably a seed
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def find_study(name: str) -> Path:
    """Return the path of a study file, given the path or the name of a shipped study.

    Raises:
        ConfigError: there is none.
    """
    path = expand_path(name)
    if os.path.isfile(path):  # False, too, for a name that no file can have
        return path
    shipped = {file.stem: file for file in STUDIES_FOLDER.glob("*.yaml")}
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
    path: Path, changes: StudyChanges | None = None, *, is_remote: bool = False
) -> Study:
    """Load and check a study.

    Args:
        path: study file.
        changes: what the command line changes in it.
        is_remote: whether its model and data are on other machines, and are not checked here.

    Raises:
        ConfigError: lists every problem as `file: key.path: problem, remedy`.
    """
    changes = changes or StudyChanges()
    source = str(path)
    study_file, problems, invalid_keys = read_study_file(path)
    schema_problem_count = len(problems)

    def report_problem(key: str, problem: str) -> None:
        problems.append(f"{source}: {key}: {problem}")

    _check_name(study_file.study, report_problem)
    base_tree = _load_recipe(study_file, changes, path, problems, is_remote)
    set_keys = tuple(changes.overrides)
    factors = parse_factors(study_file, base_tree, source, problems, set_keys=set_keys)
    seeds = _parse_seeds(study_file, changes, report_problem)
    layout = parse_layout(study_file, factors, report_problem)
    problems.extend(iter_variant_problems(changes, factors, layout.grid.when))
    benchmarks, primary_entry = _select_benchmarks(study_file, base_tree)
    goals = metric_goals(benchmarks, report_problem)
    declared = parse_declared_metrics(primary_entry, study_file.secondary, goals, report_problem)
    parse_cell = partial(layout.find_cell, report_problem=report_problem)
    published = parse_published(study_file.published, parse_cell, goals, report_problem)
    tune = parse_tune(
        study_file.tune,
        benchmarks=benchmarks,
        goals=goals,
        factors=factors,
        seeds=seeds,
        base_tree=base_tree,
        overrides=changes.overrides,
        report_problem=report_problem,
    )
    check_early_stopping(
        study_file.early_stopping,
        factors,
        goals,
        is_tuned=study_file.tune is not None,
        report_problem=report_problem,
    )
    if problems:
        others = problems[schema_problem_count:]
        others = [line for line in others if not is_consequence(line, source, invalid_keys)]
        raise ConfigError(dict.fromkeys([*problems[:schema_problem_count], *others]))
    assert layout.baseline is not None, "problems of a layout are reported"
    return Study(
        name=variant_name(study_file.study, changes),
        question=study_file.question,
        recipe=changes.recipe or study_file.recipe,
        source=source,
        base=base_tree,
        factors=factors,
        cells=layout.cells,
        seeds=seeds,
        baseline=layout.baseline,
        benchmarks=benchmarks,
        primary=declared[0],
        secondary=declared[1],
        exploratory=study_file.exploratory,
        published=published,
        design=study_file.design,
        when=layout.grid.when,
        placebo=study_file.placebo,
        excluded_count=layout.excluded_count,
        tune=tune,
        budget=study_file.budget,
        limits=study_file.limits,
        early_stopping=study_file.early_stopping,
        changes=changes,
    )


def _check_name(name: str, report_problem: ProblemReporter) -> None:
    if not _NAME_PATTERN.fullmatch(name):
        report_problem(
            "study", f"'{name}' is not a valid name: use letters, digits, '-', '_' and '.'"
        )


def _load_recipe(
    study_file: StudyFile, changes: StudyChanges, path: Path, problems: list[str], is_remote: bool
) -> dict[str, Any]:
    """Return the checked recipe as a tree, with the command line's overrides."""
    name = changes.recipe or study_file.recipe
    try:
        file = recipes.find_recipe(name, None if changes.recipe else path.parent)
        tree = recipes.read_yaml(file)
    except ConfigError as error:
        prefix = "--recipe" if changes.recipe else f"{path}: recipe"
        problems.extend(
            line
            if line.startswith(str(name)) and ":" in line[: len(str(name)) + 1]
            else f"{prefix}: {line}"
            for line in error.problems
        )
        return {}
    try:
        config = parse_trial_config(tree, str(file))
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    if study_file.evaluation is not None:
        tree["evaluation"] = study_file.evaluation.model_dump(mode="json", exclude_unset=True)
    for key, value in sorted(changes.overrides.items()):  # the order in the variant's name
        if find_key_problem(key) is None:
            set_key(tree, key, value)
    try:
        config = parse_trial_config(tree, "--set")
    except ConfigError as error:
        problems.extend(error.problems)
        return {}
    if is_remote:
        return tree
    for key, problem in (
        ("model.path", loading.find_model_problem(config.model)),
        ("data.source", data.find_source_problem(config.data)),
        ("objective", data.find_objective_problem(config.data, config.objective)),
        ("training.label_rule", loading.find_label_rule_problem(config)),
    ):
        if problem is not None:
            problems.append(f"{_key_origin(key, changes, file)}: {problem}")
    return tree


def _select_benchmarks(
    study_file: StudyFile, base_tree: Mapping[str, Any]
) -> tuple[BenchmarksConfig, DeclaredFile | None]:
    """Return the benchmarks and the primary metric of the study, or else of the recipe."""
    study_benchmarks = study_file.benchmarks
    try:
        benchmarks = study_benchmarks or BenchmarksConfig.model_validate(
            base_tree.get("benchmarks") or {}
        )
    except ValidationError:  # reported when the recipe is checked
        benchmarks = BenchmarksConfig()
    primary = study_file.primary
    if primary is None and benchmarks.primary is not None:
        primary = DeclaredFile(metric=benchmarks.primary)
    return benchmarks.model_copy(update={"primary": None}), primary


def _key_origin(key: str, changes: StudyChanges, file: Path) -> str:
    """Return where a key's value comes from: `--set` if it sets its section, else the file."""
    section = key.split(".")[0]
    is_overridden = any(name.split(".")[0] == section for name in changes.overrides)
    return f"{'--set' if is_overridden else file}: {key}"


def _parse_seeds(
    study_file: StudyFile, changes: StudyChanges, report_problem: ProblemReporter
) -> tuple[int, ...]:
    seeds = _validate_seeds(study_file.seeds, "seeds", report_problem)
    if changes.seeds is not None and seeds:
        command_line_seeds = _validate_seeds(
            list(changes.seeds), "seeds (from --seeds)", report_problem
        )
        seeds = tuple(merge_seeds(seeds, command_line_seeds))
    if study_file.placebo and max(seeds, default=0) >= PLACEBO_SEED_OFFSET:
        report_problem(
            "placebo",
            f"its seeds start at {PLACEBO_SEED_OFFSET:,}: use seeds below that, not {max(seeds):,}",
        )
    return seeds


def _validate_seeds(
    raw_seeds: Any, key_path: str, report_problem: ProblemReporter
) -> tuple[int, ...]:
    """Return distinct seeds, or none if there is a problem with them."""
    if type(raw_seeds) is int and raw_seeds > MAX_SEED_COUNT:
        report_problem(
            key_path,
            f"is a count of {raw_seeds:,}, above {MAX_SEED_COUNT:,}: write [{raw_seeds}] for a "
            "single seed",
        )
        return ()
    seeds = list(range(raw_seeds)) if type(raw_seeds) is int else raw_seeds
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        report_problem(key_path, f"give a count or a list of whole numbers, not {raw_seeds!r}")
        return ()
    if len(seeds) > MAX_SEED_COUNT:
        report_problem(key_path, f"are {len(seeds):,}, above {MAX_SEED_COUNT:,}: give fewer")
        return ()
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    problems = {
        "is empty: give at least one seed": not seeds,
        f"not distinct: {', '.join(map(str, repeated))} is listed twice: remove one": bool(
            repeated
        ),
        "a seed is negative: use 0 or more": any(seed < 0 for seed in seeds),
        f"a seed is above {LARGEST_SEED}: use a smaller one": any(
            seed > LARGEST_SEED for seed in seeds
        ),
    }
    for problem, applies in problems.items():
        if applies:
            report_problem(key_path, problem)
    return () if any(problems.values()) else tuple(seeds)
