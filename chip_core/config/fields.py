"""Declare for each configuration field whether it belongs to a trial's fingerprint.

Every field of the configuration tree is created by `hashed` or `unhashed`; a test fails for any
other, so that no field can change figures without changing the fingerprint.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

#: Scalars for which pydantic accepts other types: true is not 1, and "20" is a text.
_STRICT_TYPES = frozenset({"int", "float", "bool"})


def _make_strict(schema: Any) -> None:
    """Make the scalars of a schema strict, at any depth."""
    if isinstance(schema, dict):
        if schema.get("type") in _STRICT_TYPES:
            schema["strict"] = True
        for name, nested in schema.items():
            if name not in ("default", "metadata"):
                _make_strict(nested)
    elif isinstance(schema, (list, tuple)):
        for nested in schema:
            _make_strict(nested)


class Section(BaseModel):
    """A node of the configuration tree: frozen, typed, no unknown keys.

    Only numbers and booleans are strict. For everything else pydantic's conversions apply: a YAML
    list becomes a tuple.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept only exact numbers and booleans, also in a user's own sections."""
        schema = handler(source)
        _make_strict(schema)
        return schema


class Shorthand(Section):
    """A section that can be written as a bare string, the value of the key `shorthand`."""

    shorthand: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Allow the bare string in the JSON schema, too."""
        section = handler(core_schema)
        definition = handler.resolve_ref_schema(section)
        properties = definition["properties"]
        string_schema = {
            key: value
            for key, value in properties[cls.shorthand].items()
            if key not in ("default", "title")
        }
        return {"anyOf": [string_schema, section]}


def hashed(default: Any = ..., *, doc: str, **limits: Any) -> Any:
    """Declare a field that can change a trial's figures: part of the fingerprint."""
    return _make_field(default, doc, "in", limits)


def unhashed(default: Any = ..., *, doc: str, **limits: Any) -> Any:
    """Declare a field that changes how the work is done, not its result: not in the fingerprint."""
    return _make_field(default, doc, "out", limits)


#: Former name, for plug-ins: their source, which imports it, is part of fingerprints.
figure = hashed


def _make_field(default: Any, doc: str, fingerprint: str, limits: dict[str, Any]) -> Any:
    if callable(default):
        # A section is frozen, so all trees share one default; a plan creates 10,000 trees.
        is_section = isinstance(default, type) and issubclass(default, Section)
        limits["default_factory"] = functools.cache(default) if is_section else default
    else:
        limits["default"] = default
    return Field(description=doc, json_schema_extra={"fingerprint": fingerprint}, **limits)
