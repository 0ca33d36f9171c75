"""Bundle what a study's job needs on a cluster."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chip_core import recipes
from chip_core.utils.errors import UserError
from chip_core.utils.files import expand_path
from orchestrator.study.load import find_study


@dataclass(frozen=True, kw_only=True)
class SubmissionBundle:
    """Files laid out for a job, and how its command names them."""

    folder: Path
    study: str
    recipe: str | None


def bundle_submission(study: str, recipe: str | None, folder: Path) -> SubmissionBundle:
    """Copy what a study is made of into a folder.

    Args:
        study: a study's file or name.
        recipe: what takes the place of its recipe: a file or a name.
        folder: an empty one.

    Raises:
        UserError: a file cannot travel.
        ConfigError: there is no such study, or no such recipe.
    """
    file = find_study(study)
    shutil.copyfile(file, folder / file.name)
    if recipe is not None:
        return SubmissionBundle(folder=folder, study=file.name, recipe=_own_recipe(recipe, folder))
    named = str(recipes.read_yaml(file).get("recipe", ""))
    own = file.parent / named
    if named not in recipes.names() and own.is_file():
        inside = PurePosixPath(named)
        if inside.is_absolute() or ".." in inside.parts:
            raise UserError(
                f"{file}: recipe: {named} does not lie below the study file, and so does not "
                "travel with it to the cluster: move it there"
            )
        target = folder / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(own, target)
    return SubmissionBundle(folder=folder, study=file.name, recipe=None)


def _own_recipe(recipe: str, folder: Path) -> str:
    if recipe in recipes.names():
        return recipe
    source = recipes.find(recipe)
    if (folder / expand_path(recipe).name).exists():
        raise UserError(f"--recipe: {recipe}: is named as the study's file: rename it")
    shutil.copyfile(source, folder / source.name)
    return source.name
