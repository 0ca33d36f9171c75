"""Recipes: complete base configurations in YAML, and the one place that reads YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from chip_core.recipes.text import MAX_YAML_BYTES
from chip_core.recipes.text import parse_yaml as parse_yaml
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import expand_path
from chip_core.utils.registry import join_names, suggest

FOLDER = Path(__file__).parent
_MAX_LISTED = 8  # files of a folder that are named


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        with path.open("rb") as file:  # no more of it than may be read
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise ConfigError([f"{path}: is longer than {MAX_YAML_BYTES:,} bytes: shorten it"])
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8"]) from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError([f"{path}: does not hold a mapping of keys to values"])
    return value


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def suggest_yaml_files(folder: Path, kind: str) -> str:
    """Return what to name in place of a folder: the YAML files in it, some of them."""
    yaml_files = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if not yaml_files:
        return f"name a {kind}; there is no YAML file in it"
    suffix = ", …" if len(yaml_files) > _MAX_LISTED else ""
    return f"name the {kind} in it: {join_names(yaml_files[:_MAX_LISTED])}{suffix}"


def find_recipe(name: str, relative_to: Path | None = None) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: there is none.
    """
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    candidates = [*([relative_to / name] if relative_to else []), expand_path(name)]
    for path in candidates:
        if os.path.isfile(path):  # a name that no file can have is not a file
            return path
    folder = next((path for path in candidates if os.path.isdir(path)), None)
    if folder is not None:
        raise ConfigError([f"{name} is a folder: {suggest_yaml_files(folder, 'recipe')}"])
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError(
            [f"no file {name}: name a recipe file, or one of {', '.join(recipe_names())}"]
        )
    raise ConfigError([f"unknown recipe '{name}': {suggest(name, recipe_names())}"])
