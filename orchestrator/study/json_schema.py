"""Generate the JSON Schemas of study files and recipes, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from chip_core import recipes
from chip_core.config.trial import TrialConfig
from orchestrator.study.load import STUDIES_FOLDER
from orchestrator.study.schema import StudyFile

FileKind = Literal["study", "recipe"]

#: The shipped schemas, next to the files that name them in their first line.
SHIPPED_SCHEMAS: dict[FileKind, Path] = {
    "study": STUDIES_FOLDER / "study.schema.json",
    "recipe": recipes.FOLDER / "recipe.schema.json",
}
_MODELS: dict[FileKind, type[BaseModel]] = {"study": StudyFile, "recipe": TrialConfig}


def schema_text(kind: FileKind) -> str:
    """Return the text of a JSON Schema file."""
    schema = _MODELS[kind].model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def schema_comment(kind: FileKind, folder: Path) -> str:
    """Return a file's first line, by which editors find its schema.

    Args:
        kind: kind of file.
        folder: the file's folder. If it has no schema, the line names the shipped one.
    """
    shipped_schema = SHIPPED_SCHEMAS[kind]
    is_local = (folder / shipped_schema.name).exists()
    return f"# yaml-language-server: $schema={shipped_schema.name if is_local else shipped_schema}"
