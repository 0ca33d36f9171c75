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
STUDY_SECTIONS = ("seed", "benchmarks", "evaluation")

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


class FactorsSchema:
    """Adds each key that can be a factor, with its levels, to a JSON Schema.

    Any other factor has levels by name.
    """

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the schema of all factors instead of that of a mapping."""
        return handler(_factors_model().__pydantic_core_schema__)


def iter_dotted_keys(
    model: type[BaseModel] = TrialConfig, prefix: str = ""
) -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, type, description) of every key that can be a factor."""
    for name, field in model.model_fields.items():
        if prefix or name not in STUDY_SECTIONS:
            yield f"{prefix}{name}", field.annotation, field.description or ""
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from iter_dotted_keys(kind, f"{prefix}{name}.")


class _NamedLevels(BaseModel):
    """Levels by name, each a set of overrides."""

    model_config = ConfigDict(extra="allow", title="factors")
    __pydantic_extra__: dict[str, dict[str, dict[str, Any]]]


@cache
def _factors_model() -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for index, (key, kind, description) in enumerate(iter_dotted_keys()):
        levels = Annotated[list[kind], Field(min_length=1)]  # type: ignore[valid-type]
        info: Any = Field(default=[], alias=key, title=key, description=description)
        fields[f"key_{index}"] = (levels | dict[str, dict[str, Any]], info)
    model: type[BaseModel] = create_model("Factors", __base__=_NamedLevels, **fields)
    return model
