"""The JSON Schemas that editors read: up to date, named by every shipped file, and right."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from chip_core import recipes
from orchestrator.cli import main
from orchestrator.study.json_schema import SHIPPED_SCHEMAS, FileKind, schema_comment, schema_text
from orchestrator.study.load import STUDIES_FOLDER

FILES: list[tuple[FileKind, Path]] = [
    *(("study", path) for path in sorted(STUDIES_FOLDER.glob("*.yaml"))),
    *(("recipe", path) for path in sorted(recipes.FOLDER.glob("*.yaml"))),
]


@cache
def make_validator(kind: FileKind) -> jsonschema.Draft202012Validator:
    schema = json.loads(schema_text(kind))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def list_invalid_paths(kind: FileKind, tree: dict[str, Any]) -> list[str]:
    return [error.json_path for error in make_validator(kind).iter_errors(tree)]


@pytest.mark.parametrize("kind", SHIPPED_SCHEMAS)
def test_the_shipped_schema_is_up_to_date(kind: FileKind) -> None:
    assert SHIPPED_SCHEMAS[kind].read_text(encoding="utf-8") == schema_text(kind), (
        "run: make schemas"
    )


@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_shipped_files_name_their_schema_and_fit_it(kind: FileKind, path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == schema_comment(kind, path.parent)
    named = path.parent / first.rpartition("=")[2]
    assert named == SHIPPED_SCHEMAS[kind]
    assert list_invalid_paths(kind, recipes.read_yaml(path)) == []


def test_golden_studies_fit_the_schema() -> None:
    golden = sorted((Path(__file__).parent / "golden").glob("*.yaml"))
    assert golden
    for path in golden:
        assert list_invalid_paths("study", recipes.read_yaml(path)["study"]) == []


@pytest.mark.parametrize(
    ("edit", "place"),
    [
        ({"sedes": [0]}, "$"),
        ({"seeds": [0, 0]}, "$.seeds"),
        ({"seeds": -1}, "$.seeds"),
        ({"design": "factorial"}, "$.design"),
        ({"factors": {"optimizer.lr": ["fast"]}}, "$.factors['optimizer.lr']"),
        ({"factors": {"objective": ["dpo", "chp"]}}, "$.factors.objective"),
        ({"factors": {"optimizer.learning": [1]}}, "$.factors['optimizer.learning']"),
        ({"factors": {"seed": [1, 2]}}, "$.factors.seed"),
        ({"primary": {"metric": "shapes/hal", "goal": "less"}}, "$.primary"),
        ({"benchmarks": {"report": [{"limit": 3}]}}, "$.benchmarks"),
    ],
)
def test_an_editor_underlines_what_is_wrong(edit: dict[str, Any], place: str) -> None:
    study = {"study": "s", "factors": {"objective": ["dpo", "chip"]}}
    assert list_invalid_paths("study", study) == []
    found = list_invalid_paths("study", {**study, **edit})
    assert len(found) == 1
    assert found[0].replace('"', "'").startswith(place)


def test_bare_strings_stand_for_their_sections() -> None:
    recipe = {"model": "shapes", "objective": "dpo", "rejected_image": "black"}
    assert list_invalid_paths("recipe", recipe) == []
    assert list_invalid_paths("recipe", {**recipe, "objective": "dqo"}) == ["$.objective"]
    assert list_invalid_paths("recipe", {"objective": "dpo"}) == ["$"]  # no model


def test_a_file_elsewhere_names_the_shipped_schema(tmp_path: Path) -> None:
    line = schema_comment("study", tmp_path)
    assert line == f"# yaml-language-server: $schema={SHIPPED_SCHEMAS['study']}"
    (tmp_path / SHIPPED_SCHEMAS["study"].name).touch()
    assert schema_comment("study", tmp_path) == "# yaml-language-server: $schema=study.schema.json"


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, kind in ((["schema"], "study"), (["schema", "recipe"], "recipe")):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        assert capsys.readouterr().out == SHIPPED_SCHEMAS[kind].read_text()  # type: ignore[index]
