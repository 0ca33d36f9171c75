"""A user's own code: found, or told why not; its source is what a fingerprint holds."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chip_core.utils import plugins
from chip_core.utils.errors import ConfigError

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
    assert plugins.source_hash(f"own_code:{name}") == expected


def test_code_without_a_source_is_told(write: Callable[[str], Path]) -> None:
    write(SOURCE)
    with pytest.raises(ConfigError, match="'own_code:made' has no source file: write it in a mod"):
        plugins.source_hash("own_code:made")
    with pytest.raises(ConfigError, match="'builtins:len' has no source file"):
        plugins.source_hash("builtins:len")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sys; sys.exit(3)", r"cannot be imported \(SystemExit: 3\): mend it"),
        ("raise RuntimeError('one\\ntwo')", r"cannot be imported \(RuntimeError: one\): mend it"),
        ("def (", r"cannot be imported \(SyntaxError: .*\): mend it"),
        ("assert False", r"cannot be imported \(AssertionError\): mend it"),
        ("import not_to_be_found", r"No module named 'not_to_be_found'\): mend it"),
        ("x = 1", "module own_code has no 'term'"),
    ],
)
def test_a_module_that_cannot_be_had_is_one_line(
    write: Callable[[str], Path], source: str, expected: str
) -> None:
    write(source)
    with pytest.raises(ValueError, match=expected) as raised:
        plugins.load_plugin("own_code:term")
    assert "\n" not in str(raised.value)


def test_a_module_that_is_not_there_is_to_be_installed() -> None:
    with pytest.raises(ValueError, match="install it, or put its folder on PYTHONPATH"):
        plugins.load_plugin("nowhere_at_all.deep:term")
