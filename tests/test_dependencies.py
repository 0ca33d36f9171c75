"""What others install beside the package: ranges in pyproject.toml, versions in constraints.txt."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
PINNED = {
    name.lower(): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
    )
}


def test_the_package_asks_for_ranges_that_hold_the_tested_versions() -> None:
    extras = [
        Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines
    ]
    for requirement in [*REQUIRED, *extras]:
        operators = {each.operator for each in requirement.specifier}
        assert ">=" in operators, requirement
        assert not operators & {"==", "==="}, requirement
    for requirement in REQUIRED:
        assert Version(PINNED[requirement.name]) in requirement.specifier, requirement


def test_make_test_lowest_installs_the_lower_bounds() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "lowest.py"], capture_output=True, text=True, check=True
    )
    lowest = dict(line.split("==") for line in done.stdout.splitlines())
    tests = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
    for requirement in [*REQUIRED, *tests]:
        (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
        assert lowest.pop(requirement.name) == bound
    assert not lowest
