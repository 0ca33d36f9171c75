"""Name the variant of a study that command-line options define."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from chip_core import recipes
from chip_core.config.validation import key_problem
from orchestrator.study.model import Factor, StudyChanges, level_text

_LONGEST_VALUE, _LONGEST_NAME = 60, 160  # a folder's name has 255 at most
#: Keys that `--set` cannot change, and what to do instead.
_OWN = {
    "benchmarks": "what is tuned on and what is quoted is the study file's `benchmarks:` alone: "
    "change it there",
    "tune": "what a search is judged by is the study file's `tune:` alone: change it there",
    "seed": "the study's seeds are `seeds:`, or --seeds",
}


def variant_name(study: str, changes: StudyChanges) -> str:
    """Return the name of a study or its variant: `encoder@llava-1.6-7b+optimizer.lr=1e-6`.

    Equal names mean equal changes: a hash stands for what a name cannot hold.
    """
    name = study
    if changes.recipe is not None:
        name += f"@{_fitting(recipe_name(changes.recipe))}"
    for key, value in sorted(changes.overrides.items()):
        name += f"+{key}={_fitting(level_text(value))}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{_hash(name)}"
    return name


def recipe_name(recipe: str) -> str:
    """Return the name of a recipe, given its name or its file."""
    return recipe if recipe in recipes.recipe_names() else Path(recipe).stem


def merge_seeds(own: Sequence[int], given: Sequence[int]) -> list[int]:
    """Merge a study's seeds with those of the command line.

    New seeds are added to the study's. If none is new, only the given ones are used.
    """
    new = [seed for seed in given if seed not in own]
    return [*own, *new] if new else list(given)


def variant_problems(
    changes: StudyChanges, factors: Sequence[Factor], conditional: Collection[str]
) -> Iterator[str]:
    """Yield the problems of the changes themselves.

    Args:
        changes: changes of the command line.
        factors: factors of the study.
        conditional: names of the factors with a condition.
    """
    recipe = changes.recipe
    shipped = recipes.recipe_names()
    if recipe is not None and recipe not in shipped and recipe_name(recipe) in shipped:
        yield (
            f"--recipe: {recipe}: has the name of a shipped recipe, whose variant would be taken "
            "for this one's: rename the file"
        )
    for key in changes.overrides:
        complaint = _OWN.get(key.split(".")[0]) or key_problem(key)
        if complaint is not None:
            yield f"--set: {key}: {complaint}"
    for factor in factors:
        always = [set(level.overrides) for level in factor.levels]
        if factor.name in conditional or not always:
            continue
        for key in sorted(set.intersection(*always) & set(changes.overrides)):
            yield (
                f"--set: {key}: is set by every level of the factor '{factor.name}': change the "
                "levels in a study file of your own"
            )


def _fitting(text: str) -> str:
    """Make a text valid in the names of folders and experiments."""
    safe = re.sub(r"[^A-Za-z0-9_.,-]", "-", text)
    if safe == text and len(text) <= _LONGEST_VALUE:
        return text
    return f"{safe[:_LONGEST_VALUE]}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
