"""Turn pydantic's errors into lines for users: `file: key.path: what is wrong, what is right`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from chip_core.config.trial import SHORTHANDS, TrialConfig
from chip_core.objectives.config import PRESET_BETAS
from chip_core.utils.errors import ConfigError, to_printable
from chip_core.utils.registry import suggest

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_trial_config(tree: Mapping[str, Any], source: str) -> TrialConfig:
    """Return the configuration that a tree describes.

    Raises:
        ConfigError: every problem of the tree at once.
    """
    return parse_model(TrialConfig, tree, source)


def parse_model(
    model: type[ModelT], tree: Mapping[str, Any], source: str, prefix: str = ""
) -> ModelT:
    """Return the model that a tree describes.

    Args:
        model: the model's class.
        tree: its content as plain data.
        source: where the content is from, at the start of each problem's line.
        prefix: what the keys of the tree begin with, as the user writes them.

    Raises:
        ConfigError: every problem of the tree at once.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain_errors(error, model, source, prefix)) from None


def explain_errors(
    error: ValidationError, model: type[BaseModel], source: str, prefix: str = ""
) -> list[str]:
    """Return one line per problem, with suggestions for unknown names."""
    forms = _section_names(model)
    lines = []
    for problem in _select_form_problems(error.errors(), forms):
        unknown = problem["loc"][-1:] if problem["type"] == "extra_forbidden" else ()
        parents = problem["loc"][: len(problem["loc"]) - len(unknown)]
        location = [*(part for part in parents if not _is_form(part, forms)), *unknown]
        path = prefix + _format_location(location)
        lines.append(
            f"{source}: {path}: {_describe_problem(problem, model, location)}".replace(": :", ":")
        )
    return lines


#: pydantic's name of one of several forms of a value in a problem's location, unless it is a class.
_FORM_PATTERN = re.compile(r"(?:list|dict|tuple|literal|function-[a-z-]+)\[.*\]|str|int|float|bool")


@cache
def _section_names(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of all sections of a model."""
    names, pending = set(), [model]
    while pending:
        section = pending.pop()
        names.add(section.__name__)
        pending += [
            nested
            for field in section.model_fields.values()
            for nested in _iter_sections(field.annotation)
            if nested.__name__ not in names
        ]
    return frozenset(names)


def _is_form(part: Any, forms: Collection[str]) -> bool:
    return isinstance(part, str) and (part in forms or _FORM_PATTERN.fullmatch(part) is not None)


def _select_form_problems(problems: Sequence[Any], forms: Collection[str]) -> list[Any]:
    """Return the problems of a value for the form that it is given in.

    For a value with several forms, such as a range or a list, pydantic reports a problem for each.
    Problems of the forms that were not intended are dropped; if the value has none of the forms,
    they become one problem.
    """
    selected: list[Any] = []
    for index, problem in enumerate(problems):
        location, form = problem["loc"][:-1], problem["loc"][-1:]
        if not (form and _is_form(form[0], forms) and _is_type_error(problem)):
            selected.append(problem)
            continue
        depth = len(location)
        others = {
            number: other
            for number, other in enumerate(problems)
            if number != index
            and other["loc"][:depth] == location
            and len(other["loc"]) > depth
            and _is_form(other["loc"][depth], forms)
        }
        if any(
            len(candidate["loc"]) > depth + 1 or not _is_type_error(candidate)
            for candidate in others.values()
        ):
            continue  # it has that other form, which has the problem
        if min(others, default=index) < index:
            continue  # reported with the first
        messages = [
            candidate["msg"].removeprefix("Input should be ") for candidate in others.values()
        ]
        selected.append(
            {**problem, "loc": location, "msg": " or ".join([problem["msg"], *messages])}
        )
    return selected


def _is_type_error(problem: Any) -> bool:
    """Return whether a problem is that a value has another type altogether."""
    return bool(problem["type"].endswith("_type"))


def set_key(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key in a tree of plain data, creating sections on the way.

    A bare string at a key with a shorthand (`objective: dpo`) sets the key that it stands for.
    Other keys of the section are kept, except those of another generator.
    """
    *sections, last = path.split(".")
    node = tree
    for depth, name in enumerate(sections):
        nested = node.get(name)
        if not isinstance(nested, dict):
            prefix = ".".join(sections[: depth + 1])
            nested = {SHORTHANDS[prefix]: nested} if isinstance(nested, str) else {}
            node[name] = nested
        node = nested
    if isinstance(value, str) and path in SHORTHANDS:
        section = node.get(last)
        if path == "evaluation.generator" and _generator_kind(section) != value:
            section = None
        value = {**(section if isinstance(section, dict) else {}), SHORTHANDS[path]: value}
        if path == "objective":
            value.pop("terms", None)  # a preset names the active terms
            value |= preset_beta(value["preset"])
    node[last] = value
    if path == "objective.preset":
        node |= preset_beta(value)


def _generator_kind(section: Any) -> Any:
    """Return the kind of a generator section, or of a string that stands for one."""
    key = SHORTHANDS["evaluation.generator"]
    return section.get(key, "transformers") if isinstance(section, dict) else section


def preset_beta(preset: Any) -> dict[str, float]:
    """Return a preset's temperature as a key of the objective; empty if it has none."""
    beta = PRESET_BETAS.get(str(preset))
    return {} if beta is None else {"beta": beta}


def find_key_problem(path: str) -> str | None:
    """Return what is wrong with a dotted key of the configuration; None if it exists."""
    model: type[BaseModel] | None = TrialConfig
    parents: list[str] = []
    for name in path.split("."):
        if model is None:
            return f"'{'.'.join(parents)}' has no keys below it"
        if name not in model.model_fields:
            choices = [".".join([*parents, field]) for field in model.model_fields]
            return f"unknown key '{path}': {suggest('.'.join([*parents, name]), choices)}"
        parents.append(name)
        annotation = model.model_fields[name].annotation
        if get_origin(annotation) is Mapping:
            return None  # its keys are checked where they are used
        model = _first_section(annotation)
    return None


def _first_section(annotation: Any) -> type[BaseModel] | None:
    return next(_iter_sections(annotation), None)


def _iter_sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _iter_sections(argument)


def _format_location(location: list[Any]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            key = to_printable(str(part))
            path += f".{key}" if path else key
    return path


_MAX_CHECK_LENGTH = 10_000  # characters: messages of our own checks are not cut


def _describe_problem(problem: Any, model: type[BaseModel], location: list[Any]) -> str:
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        section: type[BaseModel] | None = model
        for part in location[:-1]:
            if section is None:
                break
            if isinstance(part, str) and part in section.model_fields:
                section = _first_section(section.model_fields[part].annotation)
        choices = list(section.model_fields) if section else []
        return f"unknown key: {suggest(str(location[-1]), choices)}"
    if kind == "literal_error":
        expected = problem["ctx"]["expected"]
        choices = [
            choice.strip("' ") for part in expected.split(" or ") for choice in part.split(",")
        ]
        return f"unknown level '{to_printable(str(value))}': {suggest(str(value), choices)}"
    if kind == "missing":
        return "is missing: add it"
    if kind == "value_error":
        return to_printable(str(problem["ctx"]["error"]), max_length=_MAX_CHECK_LENGTH)
    message = _PYTHON_TERMS.sub(lambda match: _YAML_TERMS[match[1]], problem["msg"])
    written = _format_value(value)
    return f"{message[0].lower()}{message[1:]}, not {written}{_correction_hint(kind, value)}"


def _format_value(value: Any) -> str:
    """Return a value as YAML writes it."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _correction_hint(kind: str, value: Any) -> str:
    """Return what to write instead of a value that is almost a number, or true or false."""
    if kind in ("int_type", "float_type"):
        number = _parse_number(value, integer=kind == "int_type")
        if number is not None:
            is_quoted = isinstance(value, str) and number == value.strip()
            return f": write {number}{' without quotes' if is_quoted else ''}"
    if kind == "bool_type":
        spellings = {
            "true": ("true", "yes", "on", "y", "1"),
            "false": ("false", "no", "off", "n", "0"),
        }
        for spelling, others in spellings.items():
            if str(value).strip().lower() in others:
                return f": write {spelling}{' without quotes' if value == spelling else ''}"
    return ""


def _parse_number(value: Any, *, integer: bool) -> str | None:
    """Return the number that a text, or a whole float, stands for; None for others."""
    if isinstance(value, float) and integer and value.is_integer():
        return str(int(value))
    if not isinstance(value, str):
        return None
    text = value.strip().replace("_", "")
    return text if re.fullmatch(_INTEGER_PATTERN if integer else _FLOAT_PATTERN, text) else None


#: pydantic's Python terms, to be replaced by YAML's.
_PYTHON_TERMS = re.compile(r"valid (dictionary|tuple)(?: or instance of \w+)?")
_YAML_TERMS = {"dictionary": "valid dictionary", "tuple": "valid list"}

#: As YAML 1.2 writes numbers: 1_000 is a text there.
_INTEGER_PATTERN = r"-?(?:0|[1-9][0-9]*)"
_FLOAT_PATTERN = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
