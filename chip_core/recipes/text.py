"""YAML of any origin, read into plain data within bounds.

A study file or a recipe may come from anywhere. Before it is used, its size, its depth and the
expansion of its aliases are limited, and it may only hold plain values.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from chip_core.utils.errors import ConfigError

MAX_YAML_BYTES = 2**20  # bytes; the longest shipped study has 3 KiB
MAX_VALUES = 100_000  # keys and values, those that an alias stands for counted each time
MAX_DEPTH = 50
_MAX_NUMBER = 2**64  # no count is larger; a float represents every smaller one
_ALLOWED_CONTROLS = frozenset("\t\n\r")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `off` is text, `1e-6` is a number; a key is text and unique."""

    def get_single_node(self) -> Any:
        """Return the document's tree, its bounds checked."""
        node = super().get_single_node()
        if node is not None:
            _check_bounds(node)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # reported by the loader
            if not isinstance(key, str):
                raise _yaml_error(f"the key {key_node.value} is not text: write '{key_node.value}'",
                             key_node)  # fmt: skip
            if key in seen:
                raise _yaml_error(f"the key '{key}' is set twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_plain(self, node: Any) -> Any:
        """Return a scalar's value."""
        kind = node.tag.rsplit(":", 1)[-1]
        try:
            value = _CONSTRUCTORS[kind](self, node)
        except (ValueError, KeyError):  # a tag that the text does not fit, or 5,000 digits
            raise _yaml_error(f"{_quote(str(node.value))} is not a valid {kind}", node) from None
        if isinstance(value, int) and abs(value) >= _MAX_NUMBER:
            raise _yaml_error(f"{_quote(str(node.value))} is too large a number", node)
        if isinstance(value, str):
            _check_text(value, node)
        return value


_CONSTRUCTORS: dict[str, Any] = {
    "null": yaml.SafeLoader.construct_yaml_null,
    "bool": yaml.SafeLoader.construct_yaml_bool,
    "int": yaml.SafeLoader.construct_yaml_int,
    "float": yaml.SafeLoader.construct_yaml_float,
    "str": yaml.SafeLoader.construct_yaml_str,
}
#: Every other tag is refused.
_Loader.yaml_constructors = {
    **{f"tag:yaml.org,2002:{kind}": _Loader.construct_plain for kind in _CONSTRUCTORS},
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    "tag:yaml.org,2002:map": yaml.SafeLoader.construct_yaml_map,
    None: yaml.SafeLoader.construct_undefined,
}
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
    """Return the value of a YAML text: mappings with text as keys, lists and plain scalars.

    Raises:
        ConfigError: a syntax error, with its line and column, or more than the bounds allow.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError([f"{source}: is longer than {MAX_YAML_BYTES:,} characters: shorten it"])
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = error.problem or error.context or "not YAML"
        if "\\t" in problem:
            problem = "a tab instead of spaces: indent with spaces"
        raise ConfigError([f"{location}: {problem}"]) from None
    except RecursionError:
        raise ConfigError([f"{source}: not valid YAML: nested too deep"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{source}: not YAML: {str(error).splitlines()[0]}"]) from None
    except ValueError:  # of PyYAML's scanner: an escape or a version that is not a number
        raise ConfigError([f"{source}: not YAML: a number in it cannot be read"]) from None


def _check_bounds(root: Any) -> None:
    """Check depth and number of values; the value of an alias counts at every use."""
    measured: dict[int, tuple[int, int]] = {}  # by node: values, depth
    open_nodes: set[int] = set()

    def measure(node: Any) -> tuple[int, int]:
        cached = measured.get(id(node))
        if cached is not None:
            return cached
        if id(node) in open_nodes:
            raise _yaml_error("an alias is inside its own value: write it out", node)
        open_nodes.add(id(node))
        values, depth = 1, 1
        for child in _child_nodes(node):
            child_values, child_depth = measure(child)
            values, depth = values + child_values, max(depth, child_depth + 1)
        open_nodes.discard(id(node))
        if depth > MAX_DEPTH:
            raise _yaml_error(f"is nested more than {MAX_DEPTH} deep: flatten it", node)
        if values > MAX_VALUES:
            raise _yaml_error(
                f"holds more than {MAX_VALUES:,} values, aliases written out: shorten it", node
            )
        measured[id(node)] = (values, depth)
        return values, depth

    measure(root)


def _child_nodes(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_text(text: str, node: Any) -> None:
    """Check that a text can be written and shown: no lone surrogate, no control character."""
    for char in text:
        code = ord(char)
        is_control = code < 0x20 or 0x7F <= code < 0xA0
        if 0xD800 <= code < 0xE000 or (is_control and char not in _ALLOWED_CONTROLS):
            raise _yaml_error(
                f"holds the character U+{code:04X}, which is not allowed in text: remove it", node
            )


def _quote(text: str) -> str:
    return f"'{text}'" if len(text) <= 40 else f"'{text[:40]}…'"


def _yaml_error(message: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)
