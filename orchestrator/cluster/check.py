"""Whether a cluster file will do: every problem of it at once, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from chip_core.errors import ConfigError
from orchestrator.cluster.checks.capacity import Need, Room, driver_problems, room, room_problems
from orchestrator.cluster.checks.network import network_problems, placeholder_problems
from orchestrator.cluster.checks.node_config import node_config_problems
from orchestrator.cluster.checks.node_types import node_type_problems, node_types
from orchestrator.cluster.checks.schema import schema_problems
from orchestrator.cluster.checks.start_commands import command_problems
from orchestrator.cluster.checks.storage import storage_problems
from orchestrator.cluster.checks.versions import version_problems
from orchestrator.cluster.config import ClusterFile, Problem, read_cluster

_RULES: tuple[Callable[[ClusterFile], Iterable[Problem]], ...] = (
    schema_problems,
    lambda cluster: placeholder_problems(cluster.content),
    lambda cluster: cluster.problems,
    node_type_problems,
    node_config_problems,
    command_problems,
    network_problems,
    storage_problems,
    version_problems,
    driver_problems,
)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A file, and what was found."""

    file: ClusterFile
    problems: tuple[Problem, ...]
    room: Room | None  # None: no study was asked for, or it does not fit

    @property
    def lines(self) -> list[str]:
        """Return the problems for people."""
        return [problem.line(self.file.path) for problem in self.problems]


def check_cluster(path: Path, need: Need | None = None) -> Checked:
    """Check a cluster file whole.

    Args:
        path: the file.
        need: what a study's trials take, where one is asked for.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    cluster = read_cluster(path)
    problems = tuple(dict.fromkeys(_problems(cluster, need)))
    found = None
    if need is not None and not problems:
        found = room(node_types(cluster), need)
    return Checked(file=cluster, problems=problems, room=found)


def require_good(path: Path, need: Need | None = None) -> Checked:
    """Check a cluster file.

    Raises:
        ConfigError: what is wrong with it, all of it.
    """
    checked = check_cluster(path, need)
    if checked.problems:
        raise ConfigError(checked.lines)
    return checked


def with_problems(checked: Checked, more: Iterable[Problem]) -> Checked:
    """Return what was found, with what was found besides."""
    return replace(checked, problems=(*checked.problems, *more))


def _problems(cluster: ClusterFile, need: Need | None) -> Iterator[Problem]:
    for rule in _RULES:
        yield from rule(cluster)
    if need is not None:
        yield from room_problems(cluster, need)
