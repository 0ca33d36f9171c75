"""The one-way imports are enforced: a planted violation fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINT = Path(sys.executable).parent / "lint-imports"

#: (module, a line that it may not have, the rule that it breaks)
PLANTED = [
    ("chip_core/config/trial.py", "import ray", "chip_core never imports"),
    ("chip_core/data/batches.py", "from chip_core.training import trainer", "one way: trial"),
    ("chip_core/objectives/scores.py", "import numpy", "objectives need torch"),
    ("orchestrator/plan/plan.py", "import mlflow", "mlflow lives in the tracker"),
    ("orchestrator/state/ledger.py", "from orchestrator import run", "one way: nothing later"),
    (
        "orchestrator/study/model.py",
        "from orchestrator.study import load",
        "study files go one way",
    ),
    ("orchestrator/plan/plan.py", "from orchestrator.plan import snapshot", "plans go one way"),
    (
        "orchestrator/state/ledger.py",
        "from orchestrator.state import integrity",
        "state goes one way",
    ),
    (
        "orchestrator/state/ledger.py",
        "from orchestrator.storage import remote",
        "the ledger knows no storage",
    ),
    (
        "orchestrator/runner/jobs.py",
        "from orchestrator.runner import phase",
        "the parts of a run go one way",
    ),
    (
        "orchestrator/runner/jobs.py",
        "from orchestrator.report import summary",
        "know no report",
    ),
    (
        "orchestrator/jobs/job.py",
        "from orchestrator.study import model",
        "placement and jobs stand alone",
    ),
]


def copy_packages(folder: Path) -> Path:
    for name in ("orchestrator", "chip_core"):
        ignore = shutil.ignore_patterns("__pycache__", "model")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run_linter(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow  # `make lint` asks the same
def test_the_rules_hold(tmp_path: Path) -> None:
    done = run_linter(copy_packages(tmp_path))
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def broken_rules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the linter says of all violations at once: of each rule that is broken, by what."""
    folder = copy_packages(tmp_path_factory.mktemp("planted"))
    first = "from __future__ import annotations\n"
    for module, line, _ in PLANTED:
        text = (folder / module).read_text()
        assert first in text, module
        (folder / module).write_text(text.replace(first, f"{first}{line}\n", 1))
    done = run_linter(folder)
    assert done.returncode == 1
    # a name goes over several lines, and is underlined
    found = re.split(r"\n\n((?:.+\n)+)-+\n", done.stdout.split("Broken contracts")[1])
    return {
        " ".join(name.split()): said for name, said in zip(found[1::2], found[2::2], strict=True)
    }


def parse_imported_module(line: str) -> str:
    """Return the module that a line imports."""
    words = line.split()
    return words[1] if len(words) == 2 else f"{words[1]}.{words[3]}"


@pytest.mark.parametrize(("module", "line", "rule"), PLANTED)
def test_a_planted_violation_fails(
    broken_rules: dict[str, str], module: str, line: str, rule: str
) -> None:
    (said,) = [text for name, text in broken_rules.items() if rule in name]
    name = module.removesuffix(".py").replace("/", ".")
    assert f"{name} -> {parse_imported_module(line)} (l." in said


def test_of_ray_only_what_is_public_is_used() -> None:
    private = re.compile(r"ray\.[a-z_.]*(_private|_internal)")
    assert private.search("from ray._private import worker")
    files = [*(ROOT / "orchestrator").rglob("*.py"), *(ROOT / "chip_core").rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if private.search(file.read_text(encoding="utf-8"))] == []
