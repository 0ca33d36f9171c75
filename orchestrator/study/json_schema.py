"""Write JSON Schemas of study files and recipes for editors."""

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

#: Where the schemas lie that are shipped, beside the files that name them in their first line.
SHIPPED: dict[Kind, Path] = {
    "study": STUDIES / "study.schema.json",
    "recipe": recipes.FOLDER / "recipe.schema.json",
}
_MODELS: dict[Kind, type[BaseModel]] = {"study": StudyFile, "recipe": TrialConfig}


def schema_text(kind: Kind) -> str:
    """Return a JSON Schema as the text of a file."""
    schema = _MODELS[kind].model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def reference(kind: Kind, beside: Path) -> str:
    """Return the first line by which an editor finds a file's schema.

    Args:
        kind: of the file.
        beside: the folder that it lies in; without a schema there the shipped one is named.
    """
    shipped = SHIPPED[kind]
    here = (beside / shipped.name).exists()
    return f"# yaml-language-server: $schema={shipped.name if here else shipped}"
