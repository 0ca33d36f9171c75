"""Unknown names bring the near one and the choices; a user's own code is found, or told why not.

Its source is what a fingerprint holds.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chip_core.utils import registry
from chip_core.utils.errors import ConfigError
from chip_core.utils.registry import Registry, suggest


def test_a_lookup_that_fails_names_the_near_ones() -> None:
    registry: Registry[int] = Registry("colour")
    registry.register("green")(2)
    registry.register("blue")(3)
    assert (len(registry), sorted(registry), registry["blue"]) == (2, ["blue", "green"], 3)
    with pytest.raises(KeyError, match="unknown colour 'gren': did you mean 'green'. choices: bl"):
        registry["gren"]
    assert "gren" not in registry


def test_nothing_near_is_not_suggested() -> None:
    assert suggest("xyz", ["green", "blue"]) == "choices: blue, green"


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["b", "a"], "a, b"),
        (["dpo, seed 0", "chip"], "'chip', 'dpo, seed 0'"),  # else three names are read, not two
        (["", "x"], "'', 'x'"),
        ([], "none"),
    ],
)
def test_a_name_with_a_comma_is_seen_to_be_one(names: list[str], listed: str) -> None:
    assert suggest("zzz", names) == f"choices: {listed}"


SOURCE = """
import functools
import contextlib

def plain():
    pass

@contextlib.contextmanager
def wrapped():
    yield

bound = functools.partial(plain)

class Own:
    def __call__(self):
        pass

instance = Own()
exec("def made(): pass")
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Write `own_code.py` and put it on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "own_code.py"

    def written(source: str) -> Path:
        file.write_text(source)
        return file

    yield written
    sys.modules.pop("own_code", None)


@pytest.mark.parametrize("name", ["plain", "wrapped", "bound", "Own", "instance"])
def test_the_source_is_the_users_file(write: Callable[[str], Path], name: str) -> None:
    file = write(SOURCE)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert registry.source_hash(f"own_code:{name}") == expected


def test_code_without_a_source_is_told(write: Callable[[str], Path]) -> None:
    write(SOURCE)
    with pytest.raises(ConfigError, match="'own_code:made' has no source file: write it in a mod"):
        registry.source_hash("own_code:made")
    with pytest.raises(ConfigError, match="'builtins:len' has no source file"):
        registry.source_hash("builtins:len")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sys; sys.exit(3)", r"cannot be imported \(SystemExit: 3\): fix it"),
        ("raise RuntimeError('one\\ntwo')", r"cannot be imported \(RuntimeError: one\): fix it"),
        ("def (", r"cannot be imported \(SyntaxError: .*\): fix it"),
        ("assert False", r"cannot be imported \(AssertionError\): fix it"),
        ("import not_to_be_found", r"No module named 'not_to_be_found'\): fix it"),
        ("x = 1", "module own_code has no 'term'"),
    ],
)
def test_a_module_that_cannot_be_had_is_one_line(
    write: Callable[[str], Path], source: str, expected: str
) -> None:
    write(source)
    with pytest.raises(ValueError, match=expected) as raised:
        registry.load_plugin("own_code:term")
    assert "\n" not in str(raised.value)


def test_a_module_that_is_not_there_is_to_be_installed() -> None:
    with pytest.raises(ValueError, match="install it, or put its folder on PYTHONPATH"):
        registry.load_plugin("nowhere_at_all.deep:term")
