"""Check that this machine and the cluster have the same versions."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib.metadata import version

import orchestrator
from orchestrator.cluster.checks.start_commands import COMMAND_LISTS
from orchestrator.cluster.config import SETTINGS_KEY, ClusterFile, Problem

_PINNED = re.compile(r"(?<![\w-])(ray|chip-ablate)(?:\[[^\]]*\])?==(\d[\w.]*)")


def local_versions() -> dict[str, str]:
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
    declared = cluster.settings.versions
    if declared is None:
        example = ", ".join(f"{name}: {number}" for name, number in local_versions().items())
        yield Problem(key=f"{SETTINGS_KEY}.versions", message=f"is missing: write {{{example}}}")
    else:
        remote_versions = {
            "python": declared.python,
            "ray": declared.ray,
            "chip-ablate": declared.chip_ablate,
        }
        for message, key in version_differences(remote_versions):
            yield Problem(key=f"{SETTINGS_KEY}.versions.{key}", message=message)
    for name in COMMAND_LISTS:
        for index, command in enumerate(cluster.commands(name)):
            for package, number in _PINNED.findall(command):
                if number != local_versions()[package]:
                    yield Problem(
                        key=f"{name}[{index}]",
                        message=f"installs {package} {number}, but this machine has "
                        f"{local_versions()[package]}: install the same on both sides",
                    )


def version_differences(remote_versions: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (sentence, name) for each version that does not match this machine's.

    Python's patch version may differ.
    """
    for name, local in local_versions().items():
        remote = remote_versions[name]
        is_equal = _minor(remote) == _minor(local) if name == "python" else remote == local
        if not is_equal:
            yield (
                f"{remote}, but this machine has {name} {local}: install the same on both sides",
                name,
            )


def _minor(number: str) -> tuple[str, ...]:
    return tuple(number.split(".")[:2])
