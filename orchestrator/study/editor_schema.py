"""JSON Schema, for editors, of the parts of a study file that depend on the recipe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from chip_core.config.trial import LARGEST_SEED, TrialConfig

#: Sections that the study file sets itself, so that no factor can.
OWN = ("seed", "benchmarks", "evaluation")

Seeds = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED},
                },
            ],
        }
    ),
]


class AnyFactor:
    """Adds each key that can be a factor, with its levels, to a JSON Schema.

    Any other factor has levels by name.
    """

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of all factors instead of that of a mapping."""
        return handler(_factors().__pydantic_core_schema__)


def dotted_keys(
    model: type[BaseModel] = TrialConfig, prefix: str = ""
) -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, type, description) of every key that can be a factor."""
    for name, field in model.model_fields.items():
        if prefix or name not in OWN:
            yield f"{prefix}{name}", field.annotation, field.description or ""
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from dotted_keys(kind, f"{prefix}{name}.")


class _Named(BaseModel):
    """Levels by name, each a set of overrides."""

    model_config = ConfigDict(extra="allow", title="factors")
    __pydantic_extra__: dict[str, dict[str, dict[str, Any]]]


@cache
def _factors() -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for place, (key, kind, what) in enumerate(dotted_keys()):
        levels = Annotated[list[kind], Field(min_length=1)]  # type: ignore[valid-type]
        info: Any = Field(default=[], alias=key, title=key, description=what)
        fields[f"key_{place}"] = (levels | dict[str, dict[str, Any]], info)
    made: type[BaseModel] = create_model("Factors", __base__=_Named, **fields)
    return made
