"""A user's own code, named `module:attr` in a study file or a recipe."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from pathlib import Path
from typing import Any

from chip_core.errors import ConfigError


def is_plugin(name: str) -> bool:
    """Return whether a name means a user's own code."""
    return ":" in name


def load(name: str) -> Any:
    """Return the object that `module:attr` names.

    Raises:
        ValueError: it cannot be imported; one line that says why.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"'{name}' names no code: write module:attr")
    try:
        found = importlib.import_module(module)
    except Exception as error:  # whatever a user's module does when it is imported
        raise ValueError(
            f"'{name}': module {module} cannot be imported ({_brief(error)}): "
            "install it, or put its folder on PYTHONPATH"
        ) from None
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise ValueError(f"'{name}': module {module} has no '{attribute}'") from None


def source_hash(loaded: Any) -> str:
    """Return the sha256 of the file that an object is written in: its part of a fingerprint.

    Raises:
        ConfigError: there is no such file.
    """
    try:
        file = inspect.getsourcefile(loaded)
    except TypeError:  # made in an interpreter
        file = None
    if file is None:
        raise ConfigError([f"'{loaded.__module__}:{loaded.__qualname__}' has no source file"])
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
