"""pydantic's complaints as lines a user can act on: `file: key.path: what, what would do`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from chip_core.config import SHORTHANDS, TrialConfig
from chip_core.errors import ConfigError
from chip_core.registry import suggestion


def trial_config(tree: Mapping[str, Any], source: str) -> TrialConfig:
    """Return the configuration that a tree describes.

    Raises:
        ConfigError: every problem of the tree at once.
    """
    try:
        return TrialConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, TrialConfig, source)) from None


def explain(
    error: ValidationError, model: type[BaseModel], source: str, prefix: str = ""
) -> list[str]:
    """Return one line a problem, with the near names for a name that is not there."""
    lines = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if not str(part).startswith("function-")]
        path = prefix + _dotted(location)
        lines.append(f"{source}: {path}: {_sentence(problem, model, location)}".replace(": :", ":"))
    return lines


def set_key(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key in a tree of plain data, making sections on the way.

    A bare string at a key with a shorthand (`objective: dpo`) sets the key it stands for and
    leaves the section's other keys.
    """
    *sections, last = path.split(".")
    node = tree
    for depth, name in enumerate(sections):
        below = node.get(name)
        if not isinstance(below, dict):
            whole = ".".join(sections[: depth + 1])
            below = {SHORTHANDS[whole]: below} if isinstance(below, str) else {}
            node[name] = below
        node = below
    if isinstance(value, str) and path in SHORTHANDS:
        section = node.get(last)
        value = {**(section if isinstance(section, dict) else {}), SHORTHANDS[path]: value}
        if path == "objective":
            value.pop("terms", None)  # a preset names the active terms
    node[last] = value


def key_problem(path: str) -> str | None:
    """Return what is wrong with a dotted key of the configuration; None if it is one."""
    model: type[BaseModel] | None = TrialConfig
    walked: list[str] = []
    for name in path.split("."):
        if model is None:
            return f"'{'.'.join(walked)}' has no keys below it"
        if name not in model.model_fields:
            choices = [".".join([*walked, field]) for field in model.model_fields]
            return f"unknown key '{path}': {suggestion('.'.join([*walked, name]), choices)}"
        walked.append(name)
        annotation = model.model_fields[name].annotation
        if get_origin(annotation) is Mapping:
            return None  # its keys are checked by what they are for
        model = _section(annotation)
    return None


def _section(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _dotted(location: list[Any]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else str(part)
    return path


def _sentence(problem: Any, model: type[BaseModel], location: list[Any]) -> str:
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        section: type[BaseModel] | None = model
        for part in location[:-1]:
            if section is None:
                break
            if isinstance(part, str) and part in section.model_fields:
                section = _section(section.model_fields[part].annotation)
        choices = list(section.model_fields) if section else []
        return f"unknown key: {suggestion(str(location[-1]), choices)}"
    if kind == "literal_error":
        expected = problem["ctx"]["expected"]
        choices = [word.strip("' ") for part in expected.split(" or ") for word in part.split(",")]
        return f"unknown level '{given}': {suggestion(str(given), choices)}"
    if kind == "missing":
        return "is missing: add it"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    shown = repr(given) if not isinstance(given, (dict, list)) else f"a {type(given).__name__}"
    message = problem["msg"]
    return f"{message[0].lower()}{message[1:]}, not {shown}"
