"""A training's modules import on a machine that has torch and transformers and little else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

#: What `pyproject.toml` asks for and a training does without.
ABSENT = (
    "aiohttp", "click", "datasets", "diffusers", "fsspec", "jsonschema", "matplotlib", "mlflow",
    "nltk", "pandas", "psutil", "pyarrow", "ray", "rich", "scipy", "spacy", "textblob",
)  # fmt: skip

#: What a machine with a GPU has beside the standard library; `make carry` brings the rest.
PRESENT = {"PIL", "numpy", "peft", "safetensors", "torch", "transformers", "yaml"}

CHECK = """
import ast, importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for name in sys.argv[2].split(","):
    __import__(name)

def imported(tree):
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (part.name for part in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module

OWN = ("chip_core", "benchmarks")
files = [m.__file__ for n, m in list(sys.modules.items()) if n.partition(".")[0] in OWN]
names = {name for file in files if file for name in imported(ast.parse(open(file).read()))}
roots = {name.partition(".")[0] for name in names} - set(OWN) - set(sys.stdlib_module_names)
print(*sorted(roots))
"""
MODULES = (
    "chip_core.training.trainer", "chip_core.training.fsdp",
    "chip_core.training.footprint.estimate",
    "chip_core.models.loading", "chip_core.models.adapters", "chip_core.models.base_models",
    "chip_core.data.batches", "benchmarks.gpu_acceptance",
)  # fmt: skip


def import_modules(modules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHECK, ",".join(ABSENT), modules],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def test_the_trainer_imports_without_the_rest_and_with_what_is_carried() -> None:
    done = import_modules(",".join(MODULES))
    assert done.returncode == 0, done.stderr[-2000:]
    line = re.search(r"^CARRIED := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line is not None
    carried = {name.replace("-", "_") for name in line[1].split()}
    lacking = set(done.stdout.split()) - PRESENT
    assert "pydantic" in lacking  # so it is looked at
    assert lacking <= carried


def test_what_is_absent_is_seen() -> None:
    assert "No module named 'psutil'" in import_modules("psutil").stderr
