"""Turn pydantic's errors into lines for users: `file: key.path: what is wrong, what is right`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from chip_core.config.trial import SHORTHANDS, TrialConfig
from chip_core.objectives.config import PRESET_BETAS
from chip_core.utils.errors import ConfigError, printable
from chip_core.utils.registry import suggestion


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
    """Return one line per problem, with suggestions for unknown names."""
    forms = _forms(model)
    lines = []
    for problem in _of_the_form_given(error.errors(), forms):
        unknown = problem["loc"][-1:] if problem["type"] == "extra_forbidden" else ()
        above = problem["loc"][: len(problem["loc"]) - len(unknown)]
        location = [*(part for part in above if not _is_form(part, forms)), *unknown]
        path = prefix + _dotted(location)
        lines.append(f"{source}: {path}: {_sentence(problem, model, location)}".replace(": :", ":"))
    return lines


#: pydantic's name of one of several forms of a value in a problem's location, unless it is a class.
_FORM = re.compile(r"(?:list|dict|tuple|literal|function-[a-z-]+)\[.*\]|str|int|float|bool")


@cache
def _forms(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of all sections of a model."""
    names, left = set(), [model]
    while left:
        section = left.pop()
        names.add(section.__name__)
        left += [
            below
            for field in section.model_fields.values()
            for below in _sections(field.annotation)
            if below.__name__ not in names
        ]
    return frozenset(names)


def _is_form(part: Any, forms: Collection[str]) -> bool:
    return isinstance(part, str) and (part in forms or _FORM.fullmatch(part) is not None)


def _of_the_form_given(problems: Sequence[Any], forms: Collection[str]) -> list[Any]:
    """Return the problems of a value for the form that it is given in.

    For a value with several forms, such as a range or a list, pydantic reports a problem for each.
    Those of forms that it was not meant to be are dropped; if it has none of the forms, they become
    one.
    """
    kept: list[Any] = []
    for place, problem in enumerate(problems):
        location, form = problem["loc"][:-1], problem["loc"][-1:]
        if not (form and _is_form(form[0], forms) and _is_shape(problem)):
            kept.append(problem)
            continue
        depth = len(location)
        others = {
            number: other
            for number, other in enumerate(problems)
            if number != place
            and other["loc"][:depth] == location
            and len(other["loc"]) > depth
            and _is_form(other["loc"][depth], forms)
        }
        if any(len(one["loc"]) > depth + 1 or not _is_shape(one) for one in others.values()):
            continue  # it has that other form, which has the problem
        if min(others, default=place) < place:
            continue  # reported with the first
        told = [one["msg"].removeprefix("Input should be ") for one in others.values()]
        kept.append({**problem, "loc": location, "msg": " or ".join([problem["msg"], *told])})
    return kept


def _is_shape(problem: Any) -> bool:
    """Return whether a problem is that a value has another type altogether."""
    return bool(problem["type"].endswith("_type"))


def set_key(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key in a tree of plain data, creating sections on the way.

    A bare string at a key with a shorthand (`objective: dpo`) sets the key it stands for and leaves
    the section's other keys, except those of another generator, which are removed.
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
        if path == "evaluation.generator" and _kind_of_generator(section) != value:
            section = None
        value = {**(section if isinstance(section, dict) else {}), SHORTHANDS[path]: value}
        if path == "objective":
            value.pop("terms", None)  # a preset names the active terms
            value |= preset_beta(value["preset"])
    node[last] = value
    if path == "objective.preset":
        node |= preset_beta(value)


def _kind_of_generator(written: Any) -> Any:
    """Return the kind of a generator section, or of a string that stands for one."""
    key = SHORTHANDS["evaluation.generator"]
    return written.get(key, "transformers") if isinstance(written, dict) else written


def preset_beta(preset: Any) -> dict[str, float]:
    """Return a preset's temperature as a key of the objective; empty if it has none."""
    own = PRESET_BETAS.get(str(preset))
    return {} if own is None else {"beta": own}


def key_problem(path: str) -> str | None:
    """Return what is wrong with a dotted key of the configuration; None if it exists."""
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
            return None  # its keys are checked where they are used
        model = _section(annotation)
    return None


def _section(annotation: Any) -> type[BaseModel] | None:
    return next(_sections(annotation), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _dotted(location: list[Any]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else str(part)
    return path


_LONGEST_CHECK = 10_000  # characters: messages of our own checks are not cut


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
        return f"unknown level '{printable(str(given))}': {suggestion(str(given), choices)}"
    if kind == "missing":
        return "is missing: add it"
    if kind == "value_error":
        return printable(str(problem["ctx"]["error"]), longest=_LONGEST_CHECK)
    message = _PYTHONS.sub(lambda found: _YAMLS[found[1]], problem["msg"])
    return f"{message[0].lower()}{message[1:]}, not {_shown(given)}{_hint(kind, given)}"


def _shown(given: Any) -> str:
    """Return a value as YAML writes it."""
    if isinstance(given, (dict, list)):
        return f"a {'mapping' if isinstance(given, dict) else 'list'}"
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    return repr(given)


def _hint(kind: str, given: Any) -> str:
    """Return what to write instead of a value that is almost a number, or true or false."""
    if kind in ("int_type", "float_type"):
        number = _number(given, whole=kind == "int_type")
        if number is not None:
            quoted = isinstance(given, str) and number == given.strip()
            return f": write {number}{' without quotes' if quoted else ''}"
    if kind == "bool_type":
        words = {"true": ("true", "yes", "on", "y", "1"), "false": ("false", "no", "off", "n", "0")}
        for word, others in words.items():
            if str(given).strip().lower() in others:
                return f": write {word}{' without quotes' if given == word else ''}"
    return ""


def _number(given: Any, *, whole: bool) -> str | None:
    """Return the number that a text, or a whole float, stands for; None for others."""
    if isinstance(given, float) and whole and given.is_integer():
        return str(int(given))
    if not isinstance(given, str):
        return None
    text = given.strip().replace("_", "")
    return text if re.fullmatch(_WHOLE if whole else _REAL, text) else None


#: pydantic's Python terms, to be replaced by YAML's.
_PYTHONS = re.compile(r"valid (dictionary|tuple)(?: or instance of \w+)?")
_YAMLS = {"dictionary": "valid dictionary", "tuple": "valid list"}

#: As YAML 1.2 writes numbers: 1_000 is a text there.
_WHOLE = r"-?(?:0|[1-9][0-9]*)"
_REAL = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
