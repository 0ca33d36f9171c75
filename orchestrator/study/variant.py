"""Name the variant that the command line makes of a study."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from chip_core import recipes
from chip_core.config.validation import key_problem
from orchestrator.study.model import Factor, StudyChanges, level_text

_LONGEST_VALUE, _LONGEST_NAME = 60, 160  # of a folder's name there are 255
#: What `--set` does not reach, though there are keys of such names.
_OWN = {
    "benchmarks": "what is tuned on and what is quoted is the study file's `benchmarks:` alone: "
    "change it there",
    "tune": "what a search is judged by is the study file's `tune:` alone: change it there",
    "seed": "the study's seeds are `seeds:`, or --seeds",
}


def variant_name(study: str, changes: StudyChanges) -> str:
    """Return a study's name, or its variant's: `encoder@llava-1.6-7b+optimizer.lr=1e-6`.

    Equal names are equal changes: what a name cannot hold is told apart by a hash.
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
    """Return what a recipe is called, given its name or its file."""
    return recipe if recipe in recipes.names() else Path(recipe).stem


def merge_seeds(own: Sequence[int], given: Sequence[int]) -> list[int]:
    """Return a study's seeds with those of the command line.

    Seeds that are new are added; where none is, those given are the part to be looked at.
    """
    new = [seed for seed in given if seed not in own]
    return [*own, *new] if new else list(given)


def variant_problems(
    changes: StudyChanges, factors: Sequence[Factor], conditional: Collection[str]
) -> Iterator[str]:
    """Yield what is wrong with the changes themselves.

    Args:
        changes: of the command line.
        factors: of the study.
        conditional: the names of factors that do not apply everywhere.
    """
    recipe = changes.recipe
    shipped = recipes.names()
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
    """Return a text as names of folders and experiments may have it."""
    safe = re.sub(r"[^A-Za-z0-9_.,-]", "-", text)
    if safe == text and len(text) <= _LONGEST_VALUE:
        return text
    return f"{safe[:_LONGEST_VALUE]}-{_hash(text)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
