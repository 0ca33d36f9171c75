"""Check a cluster file without a network, and list all its problems."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from chip_core.utils.errors import ConfigError
from orchestrator.cluster.checks.capacity import (
    Capacity,
    ResourceNeed,
    capacity_problems,
    compute_capacity,
    driver_problems,
)
from orchestrator.cluster.checks.network import network_problems, placeholder_problems
from orchestrator.cluster.checks.node_config import node_config_problems
from orchestrator.cluster.checks.node_types import list_node_types, node_type_problems
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
class ClusterCheck:
    """A cluster file and its problems."""

    file: ClusterFile
    problems: tuple[Problem, ...]
    capacity: Capacity | None  # None: no study was given, or it does not fit

    @property
    def lines(self) -> list[str]:
        """Return the problems as lines of text."""
        return [problem.line(self.file.path) for problem in self.problems]


def check_cluster(path: Path, need: ResourceNeed | None = None) -> ClusterCheck:
    """Check a cluster file completely.

    Args:
        path: the file.
        need: the resources of a study's trials, if a study is given.

    Raises:
        ConfigError: it cannot be read, or is not a mapping.
    """
    cluster = read_cluster(path)
    all_problems = [problem for rule in _RULES for problem in rule(cluster)]
    if need is not None:
        all_problems += capacity_problems(cluster, need)
    problems = tuple(dict.fromkeys(all_problems))
    cluster_capacity = None
    if need is not None and not problems:
        cluster_capacity = compute_capacity(list_node_types(cluster), need)
    return ClusterCheck(file=cluster, problems=problems, capacity=cluster_capacity)


def require_valid(path: Path, need: ResourceNeed | None = None) -> ClusterCheck:
    """Check a cluster file, and require that it has no problems.

    Raises:
        ConfigError: lists all problems of the file.
    """
    check = check_cluster(path, need)
    if check.problems:
        raise ConfigError(check.lines)
    return check
