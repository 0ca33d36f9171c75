"""Names that a study file may use: suggestions for unknown ones, and a user's own code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from chip_core.utils.errors import ConfigError, describe_error

T = TypeVar("T")


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return `did you mean 'x'? choices: …` for a name that is not among the choices."""
    names = sorted(str(choice) for choice in choices)
    matches = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    choices_text = f"choices: {join_names(names)}"
    return f"did you mean '{matches[0]}'? {choices_text}" if matches else choices_text


def join_names(names: Iterable[str]) -> str:
    """Return names joined by commas; quoted if one is empty or contains a comma or a space."""
    texts = [str(name) for name in names]
    if any(not name or "," in name or " " in name for name in texts):
        texts = [f"'{name}'" for name in texts]
    return ", ".join(texts) or "none"


class Registry(Mapping[str, T], Generic[T]):
    """A mapping of names; a failed lookup suggests similar names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its object as `name`."""

        def decorator(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name} is registered twice"
            self._entries[name] = entry
            return entry

        return decorator

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(
                f"unknown {self.kind} '{name}': {suggest(name, self._entries)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


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
        raise ValueError(f"'{name}' does not name any code: write module:attr")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == module.split(".")[0]
        advice = "install it, or put its folder on PYTHONPATH" if is_missing else "fix it"
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
