"""What no line of the package may do, whatever it is given."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import chip_core
import orchestrator

FILES = [
    file
    for package in (chip_core, orchestrator)
    for file in sorted(Path(str(package.__file__)).parent.rglob("*.py"))
]
#: A trial's error, which Tune writes in the same process; a class of errors, nothing is read by it.
PICKLES = {"tuner.py": {"loads"}, "released.py": {"UnpicklingError"}}


@cache
def list_nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


@cache
def list_calls(file: Path) -> list[tuple[str, ast.Call]]:
    return [
        (ast.unparse(node.func), node) for node in list_nodes(file) if isinstance(node, ast.Call)
    ]


def get_keywords(call: ast.Call) -> dict[str, str]:
    return {one.arg: ast.unparse(one.value) for one in call.keywords if one.arg is not None}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_file_calls_nothing_dangerous(file: Path) -> None:
    for name, call in list_calls(file):
        given = get_keywords(call)
        assert name not in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput"), name
        assert given.get("shell", "False") == "False", f"{name} by a shell"
        assert given.get("trust_remote_code", "False") != "True", name
        assert given.get("allow_pickle", "False") == "False", name
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{file}:{call.lineno} unpickles"
        if name == "yaml.load":
            assert given.get("Loader") == "_Loader", "the one that is bounded"
        if name.endswith("AutoModelForImageTextToText.from_pretrained"):
            assert given["use_safetensors"] == "True", f"{file}:{call.lineno} may unpickle"
        if name in ("Image.open", "PIL.Image.open"):
            assert file.name in ("image_files.py", "study_gallery.py"), "open_image is bounded"
    used = {
        node.attr
        for node in list_nodes(file)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("pickle", "cloudpickle", "joblib", "shelve", "marshal", "dill")
    }
    assert used <= PICKLES.get(file.name, set())


def test_the_files_are_found() -> None:
    assert len(FILES) > 200
    assert any(name == "torch.load" for file in FILES for name, _ in list_calls(file))
