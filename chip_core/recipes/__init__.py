"""Recipes: complete base configurations in YAML, and the one place that reads YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from chip_core.errors import ConfigError
from chip_core.files import expanded
from chip_core.recipes.text import LONGEST
from chip_core.recipes.text import parse_yaml as parse_yaml
from chip_core.registry import suggestion

FOLDER = Path(__file__).parent


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


def find(name: str, relative_to: Path | None = None) -> Path:
    """Return the file of a recipe given by name or by path.

    Raises:
        ConfigError: there is none.
    """
    if name in names():
        return FOLDER / f"{name}.yaml"
    for path in [*([relative_to / name] if relative_to else []), expanded(name)]:
        if os.path.isfile(path):  # a name that no file can have is no file
            return path
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError([f"no file {name}: name a recipe file, or one of {', '.join(names())}"])
    raise ConfigError([f"unknown recipe '{name}': {suggestion(name, names())}"])
