"""Recipes: complete base configurations in YAML, and the one place that reads YAML."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from chip_core.errors import ConfigError
from chip_core.files import expanded
from chip_core.registry import suggestion

FOLDER = Path(__file__).parent


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `off` is text, `1e-6` is a number; a key stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # told by the loader
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rsplit(":", 1)[-1] not in {"bool", "float", "timestamp", "int"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text, read safely.

    Raises:
        ConfigError: a syntax error, with its line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        what = error.problem or error.context or "not YAML"
        if "\\t" in what:
            what = "a tab where YAML wants spaces: indent with spaces"
        raise ConfigError([f"{place}: {what}"]) from None
    except RecursionError:
        raise ConfigError([f"{source}: not YAML that can be read: too deep"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{source}: not YAML: {str(error).splitlines()[0]}"]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
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
        if path.is_file():
            return path
    if name.endswith((".yaml", ".yml")) or "/" in name:
        raise ConfigError([f"no file {name}: name a recipe file, or one of {', '.join(names())}"])
    raise ConfigError([f"unknown recipe '{name}': {suggestion(name, names())}"])
