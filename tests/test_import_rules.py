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


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("orchestrator", "chip_core"):
        ignore = shutil.ignore_patterns("__pycache__", "model")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [LINT, "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_rules_hold(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("chip_core/config/trial.py", "import ray", "chip_core never imports"),
        ("chip_core/data/batches.py", "from chip_core.training import trainer", "one way: trial"),
        ("chip_core/objectives/terms.py", "import numpy", "objectives need torch"),
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
            "from orchestrator.runner import recorder",
            "the parts of a run go one way",
        ),
        (
            "orchestrator/runner/jobs.py",
            "from orchestrator.report import summary",
            "know no report",
        ),
        (
            "orchestrator/jobs/stopping.py",
            "from orchestrator.study import model",
            "placement and stopping stand alone",
        ),
    ],
)
def test_a_planted_violation_fails(copy: Path, module: str, line: str, broken: str) -> None:
    file = copy / module
    file.write_text(
        file.read_text().replace("from __future__ import annotations\n",
                                 f"from __future__ import annotations\n{line}\n")
    )  # fmt: skip
    done = lint(copy)
    assert done.returncode == 1
    assert broken in " ".join(done.stdout.split("Broken contracts")[1].split())


def test_of_ray_only_what_is_public_is_used() -> None:
    private = re.compile(r"ray\.[a-z_.]*(_private|_internal)")
    for package in ("orchestrator", "chip_core"):
        for file in (ROOT / package).rglob("*.py"):
            assert not private.search(file.read_text(encoding="utf-8")), file
