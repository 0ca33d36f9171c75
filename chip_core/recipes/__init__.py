"""Recipes: complete base configurations in YAML, and the one place that reads YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from chip_core.recipes.text import LONGEST
from chip_core.recipes.text import parse_yaml as parse_yaml
from chip_core.utils.errors import ConfigError
from chip_core.utils.files import expand_path
from chip_core.utils.registry import join_names, suggestion

FOLDER = Path(__file__).parent
_NAMED = 8  # files of a folder that are join_names


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        with path.open("rb") as file:  # no more of it than may be read
            content = file.read(LONGEST + 1)
        if len(content) > LONGEST:
            raise ConfigError([f"{path}: is longer than {LONGEST:,} bytes: shorten it"])
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8"]) from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError([f"{path}: holds no mapping of keys to values"])
    return value


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def files_in(folder: Path, what: str) -> str:
    """Return what to name in place of a folder: the YAML files in it, some of them."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    if not found:
        return f"name a {what}, and no YAML lies in it"
    more = ", …" if len(found) > _NAMED else ""
    return f"name the {what} in it: {join_names(found[:_NAMED])}{more}"


def find(name: str, relative_to: Path | None = None) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: there is none.
    """
    if name in names():
        return FOLDER / f"{name}.yaml"
    places = [*([relative_to / name] if relative_to else []), expand_path(name)]
    for path in places:
        if os.path.isfile(path):  # a name that no file can have is no file
            return path
    folder = next((path for path in places if os.path.isdir(path)), None)
    if folder is not None:
        raise ConfigError([f"{name} is a folder: {files_in(folder, 'recipe')}"])
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError([f"no file {name}: name a recipe file, or one of {', '.join(names())}"])
    raise ConfigError([f"unknown recipe '{name}': {suggestion(name, names())}"])
