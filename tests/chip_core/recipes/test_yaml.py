"""The one place that reads YAML: YAML 1.2's scalars, and faults with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from chip_core import recipes
from chip_core.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("1e-6", 1e-6),
        ("1_000", "1_000"),
        ("0o17", "0o17"),
        ("12:30", "12:30"),
        ("2025-01-31", "2025-01-31"),
        ("-3", -3),
        (".5", 0.5),
        ("null", None),
        ("{a: [1, b]}", {"a": [1, "b"]}),
    ],
)
def test_scalars_have_the_types_that_users_mean(text: str, value: object) -> None:
    found = recipes.parse_yaml(text, "x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [1", "x:2:6: expected ',' or ']'"),
        ("a: 1\na: 2", "x:2:1: the key 'a' is set twice"),
        ("a:\n\t- 1", "x:2:1: a tab instead of spaces: indent with spaces"),
        ("a: !!python/object:os.system {}", "x:1:4: could not determine a constructor"),
        ("a: \x07", "x: not YAML: unacceptable character"),
        ("{[1]: 2}", "x:1:2: found unhashable key"),
        ("[" * 5000, "x: not valid YAML: nested too deep"),
    ],
)
def test_a_fault_is_told_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        recipes.parse_yaml(text, "x")
    (line,) = raised.value.problems
    assert expected in line
    assert "\n" not in line


def test_a_file_that_is_no_recipe_is_told(tmp_path: Path) -> None:
    def complaint(content: bytes) -> str:
        file = tmp_path / "a recipe.yaml"
        file.write_bytes(content)
        with pytest.raises(ConfigError) as raised:
            recipes.read_yaml(file)
        return raised.value.problems[0].removeprefix(f"{file}: ")

    assert complaint(b"a: \xff") == "not UTF-8 at byte 3: save it as UTF-8"
    assert complaint(b"- 1") == "does not hold a mapping of keys to values"
    assert complaint(b"") == "does not hold a mapping of keys to values"
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        recipes.read_yaml(tmp_path)


def test_a_recipe_is_found_by_name_beside_a_study_or_by_path(tmp_path: Path) -> None:
    own = tmp_path / "my recipe.yaml"
    own.write_text("model: shapes")
    assert recipes.find_recipe("shapes").name == "shapes.yaml"
    assert recipes.find_recipe(own.name, relative_to=tmp_path) == own
    assert recipes.find_recipe(str(own)) == own
    with pytest.raises(ConfigError, match="no file ~nobody-here/x.yaml: name a recipe file"):
        recipes.find_recipe("~nobody-here/x.yaml")
    with pytest.raises(ConfigError, match=r"^\. is a folder: name the recipe in it: 'my recipe"):
        recipes.find_recipe(".")
