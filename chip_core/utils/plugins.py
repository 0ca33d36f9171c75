"""Load a user's own code, named `module:attr` in a study file or a recipe."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from chip_core.utils.errors import ConfigError, describe_error


def is_plugin(name: str) -> bool:
    """Return whether a name refers to a user's own code."""
    return ":" in name


def load_plugin(name: str) -> Any:
    """Return the object that `module:attr` names.

    Raises:
        ValueError: it cannot be imported; the message is one line.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"'{name}' names no code: write module:attr")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        advice = "install it, or put its folder on PYTHONPATH" if is_missing else "mend it"
        raise ValueError(
            f"'{name}': module {module} cannot be imported ({describe_error(error)}): {advice}"
        ) from None
    try:
        return getattr(imported, attribute)
    except AttributeError:
        raise ValueError(f"'{name}': module {module} has no '{attribute}'") from None


def source_hash(name: str) -> str:
    """Return the sha256 of the source file of a user's code: its part of a fingerprint.

    For a function or a class it is the file that defines it, also if it is wrapped; for any other
    object, such as an instance, the file of the named module.

    Raises:
        ConfigError: there is no such file.
    """
    plugin = load_plugin(name)
    definition = inspect.unwrap(plugin) if callable(plugin) else plugin
    if not (inspect.isfunction(definition) or inspect.isclass(definition)):
        definition = sys.modules[name.partition(":")[0]]
    try:
        file = inspect.getsourcefile(definition)
    except TypeError:  # defined interactively, or compiled
        file = None
    if file is None or not Path(file).is_file():
        raise ConfigError([f"'{name}' has no source file: write it in a module of your own"])
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
