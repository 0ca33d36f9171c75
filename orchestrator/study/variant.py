"""Name the variant of a study that command-line options define."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from chip_core import recipes
from chip_core.config.validation import find_key_problem
from orchestrator.study.model import Factor, StudyChanges, format_level

_MAX_VALUE_LENGTH, _MAX_NAME_LENGTH = 60, 160  # a folder's name has at most 255 characters
#: Keys that `--set` cannot change, and what to do instead.
_FIXED_KEYS = {
    "benchmarks": "the benchmarks to tune on and to report are set only by the study file's "
    "`benchmarks:`: change it there",
    "tune": "searches are set only by the study file's `tune:`: change it there",
    "seed": "the study's seeds are set by `seeds:` or --seeds",
}


def variant_name(study: str, changes: StudyChanges) -> str:
    """Return the name of a study or its variant: `encoder@llava-1.6-7b+optimizer.lr=1e-6`.

    Equal names mean equal changes: a hash stands for what a name cannot hold.
    """
    name = study
    if changes.recipe is not None:
        name += f"@{_sanitize(recipe_name(changes.recipe))}"
    for key, value in sorted(changes.overrides.items()):
        name += f"+{key}={_sanitize(format_level(value))}"
    if len(name) > _MAX_NAME_LENGTH:
        name = f"{name[: _MAX_NAME_LENGTH - 9]}-{_short_hash(name)}"
    return name


def recipe_name(recipe: str) -> str:
    """Return the name of a recipe, given its name or its file."""
    return recipe if recipe in recipes.recipe_names() else Path(recipe).stem


def merge_seeds(study_seeds: Sequence[int], command_line_seeds: Sequence[int]) -> list[int]:
    """Merge a study's seeds with those of the command line.

    New seeds are added to the study's. If none is new, only the given ones are used.
    """
    new_seeds = [seed for seed in command_line_seeds if seed not in study_seeds]
    return [*study_seeds, *new_seeds] if new_seeds else list(command_line_seeds)


def iter_variant_problems(
    changes: StudyChanges, factors: Sequence[Factor], conditional_factors: Collection[str]
) -> Iterator[str]:
    """Yield the problems of the changes themselves.

    Args:
        changes: changes of the command line.
        factors: factors of the study.
        conditional_factors: names of the factors with a condition.
    """
    recipe = changes.recipe
    shipped_recipes = recipes.recipe_names()
    if (
        recipe is not None
        and recipe not in shipped_recipes
        and recipe_name(recipe) in shipped_recipes
    ):
        yield (
            f"--recipe: {recipe}: has the name of a shipped recipe, and their variants could not "
            "be told apart: rename the file"
        )
    for key in changes.overrides:
        problem = _FIXED_KEYS.get(key.split(".")[0]) or find_key_problem(key)
        if problem is not None:
            yield f"--set: {key}: {problem}"
    for factor in factors:
        key_sets = [set(level.overrides) for level in factor.levels]
        if factor.name in conditional_factors or not key_sets:
            continue
        for key in sorted(set.intersection(*key_sets) & set(changes.overrides)):
            yield (
                f"--set: {key}: is set by every level of the factor '{factor.name}': change the "
                "levels in a study file of your own"
            )


def _sanitize(text: str) -> str:
    """Make a text valid in the names of folders and experiments."""
    safe = re.sub(r"[^A-Za-z0-9_.,-]", "-", text)
    if safe == text and len(text) <= _MAX_VALUE_LENGTH:
        return text
    return f"{safe[:_MAX_VALUE_LENGTH]}-{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
