"""Check that this machine and the cluster have the same versions."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import version

import orchestrator
from orchestrator.cluster.checks.start_commands import LISTS
from orchestrator.cluster.config import SETTINGS, ClusterFile, Problem

_PINNED = re.compile(r"(?<![\w-])(ray|chip-ablate)(?:\[[^\]]*\])?==(\d[\w.]*)")


def here() -> dict[str, str]:
    """Return this machine's versions."""
    return {
        "python": platform.python_version(),
        "ray": version("ray"),
        "chip-ablate": orchestrator.__version__,
    }


def version_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield differences between the cluster's versions in the file and this machine's."""
    if cluster.settings is None:
        return
    said = cluster.settings.versions
    if said is None:
        written = ", ".join(f"{name}: {number}" for name, number in here().items())
        yield Problem(key=f"{SETTINGS}.versions", what=f"is missing: write {{{written}}}")
    else:
        there = {"python": said.python, "ray": said.ray, "chip-ablate": said.chip_ablate}
        for what, key in differences(there):
            yield Problem(key=f"{SETTINGS}.versions.{key}", what=what)
    for name in LISTS:
        for index, command in enumerate(cluster.commands(name)):
            for package, number in _PINNED.findall(command):
                if number != here()[package]:
                    yield Problem(
                        key=f"{name}[{index}]",
                        what=f"installs {package} {number}, and here is {here()[package]}: "
                        "install the same on both sides",
                    )


def differences(there: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (sentence, name) for each version that does not match this machine's.

    Python's patch version may differ.
    """
    for name, mine in here().items():
        its = there[name]
        same = _minor(its) == _minor(mine) if name == "python" else its == mine
        if not same:
            yield (f"{its}, and here is {name} {mine}: install the same on both sides", name)


def _minor(number: str) -> tuple[str, ...]:
    return tuple(number.split(".")[:2])
