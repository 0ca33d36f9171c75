"""Generate the JSON Schemas of study files and recipes, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from chip_core import recipes
from chip_core.config.trial import TrialConfig
from orchestrator.study.load import STUDIES
from orchestrator.study.schema import StudyFile

Kind = Literal["study", "recipe"]

#: The shipped schemas, next to the files that name them in their first line.
SHIPPED: dict[Kind, Path] = {
    "study": STUDIES / "study.schema.json",
    "recipe": recipes.FOLDER / "recipe.schema.json",
}
_MODELS: dict[Kind, type[BaseModel]] = {"study": StudyFile, "recipe": TrialConfig}


def schema_text(kind: Kind) -> str:
    """Return the text of a JSON Schema file."""
    schema = _MODELS[kind].model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def reference(kind: Kind, beside: Path) -> str:
    """Return a file's first line, by which editors find its schema.

    Args:
        kind: kind of file.
        beside: the file's folder. If it has no schema, the line names the shipped one.
    """
    shipped = SHIPPED[kind]
    here = (beside / shipped.name).exists()
    return f"# yaml-language-server: $schema={shipped.name if here else shipped}"
