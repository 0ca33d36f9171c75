"""List a cluster file's node types, and how many of each it may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.checks.start_commands import (
    HEAD_COMMANDS,
    WORKER_COMMANDS,
    declared_resources,
    find_ray_start,
)
from orchestrator.cluster.config import LOCAL_PROVIDER, ClusterFile, Problem


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A type of machine."""

    key: str  # key in the file
    head: bool
    max_count: int  # largest number of machines
    resources: Mapping[str, float]  # per machine, with Ray's names, as far as given


def list_node_types(cluster: ClusterFile) -> list[NodeType]:
    """Return the head's type first, then the workers'."""
    if cluster.provider == LOCAL_PROVIDER:
        return _local_node_types(cluster)
    head_type = cluster.content.get("head_node_type")
    node_types = []
    for name, entry in cluster.section("available_node_types").items():
        if not isinstance(entry, dict):
            continue
        head = name == head_type
        node_types.append(
            NodeType(
                key=f"available_node_types.{name}",
                head=head,
                max_count=1 if head else _max_workers(cluster, entry),
                resources=_parse_amounts(entry.get("resources"))
                | declared_resources(
                    find_ray_start(cluster, HEAD_COMMANDS if head else WORKER_COMMANDS)
                ),
            )
        )
    return sorted(node_types, key=lambda kind: not kind.head)


def iter_worker_configs(cluster: ClusterFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and `node_config` of each node type but the head's."""
    for name, entry in cluster.section("available_node_types").items():
        config = entry.get("node_config") if isinstance(entry, dict) else None
        if name != cluster.content.get("head_node_type") and isinstance(config, dict):
            yield name, config


def node_type_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield the problems of the node types."""
    if cluster.provider == LOCAL_PROVIDER:
        yield from _local_problems(cluster)
        return
    kinds = cluster.section("available_node_types")
    if not kinds:
        yield Problem(
            key="available_node_types",
            message="is missing: define the head's type and the workers'",
        )
        return
    head = cluster.content.get("head_node_type")
    if head not in list(kinds):  # it need not be hashable
        message = f"'{head}' is none of available_node_types: {', '.join(map(str, kinds))}"
        yield Problem(key="head_node_type", message=message)
    if not any(True for _ in iter_worker_configs(cluster)):
        yield Problem(key="available_node_types", message="has no workers: add a type for them")
    for name, entry in kinds.items():
        if name != head and isinstance(entry, dict) and entry.get("max_workers") == 0:
            key = f"available_node_types.{name}.max_workers"
            yield Problem(
                key=key,
                message="0: no machine of this type is ever started: raise it, or remove the type",
            )
    max_workers = cluster.content.get("max_workers", 2)  # Ray's default
    if max_workers == 0:
        yield Problem(key="max_workers", message="0: no worker is ever started: raise it")
    min_workers = sum(
        entry["min_workers"]
        for name, entry in kinds.items()
        if name != head and isinstance(entry, dict) and isinstance(entry.get("min_workers"), int)
    )
    if isinstance(max_workers, int) and 0 < max_workers < min_workers:  # `ray up` refuses it
        message = f"{max_workers}, but the types' min_workers add up to {min_workers}: raise it"
        yield Problem(key="max_workers", message=message)


def _local_node_types(cluster: ClusterFile) -> list[NodeType]:
    ips = cluster.section("provider").get("worker_ips")
    count = len(ips) if isinstance(ips, list) else 0
    max_workers = cluster.content.get("max_workers", count)
    declared = dict(cluster.settings.worker) if cluster.settings else {}
    head, worker = find_ray_start(cluster, HEAD_COMMANDS), find_ray_start(cluster, WORKER_COMMANDS)
    return [
        NodeType(
            key="provider.head_ip", head=True, max_count=1, resources=declared_resources(head)
        ),
        NodeType(
            key="provider.worker_ips",
            head=False,
            max_count=min(count, max_workers) if isinstance(max_workers, int) else count,
            resources=declared | declared_resources(worker),
        ),
    ]


def _local_problems(cluster: ClusterFile) -> Iterator[Problem]:
    provider = cluster.section("provider")
    ips = provider.get("worker_ips")
    for key, is_missing in (
        ("head_ip", not isinstance(provider.get("head_ip"), str)),
        ("worker_ips", not isinstance(ips, list)),
    ):
        if is_missing and "coordinator_address" not in provider:
            yield Problem(key=f"provider.{key}", message="is missing: list the machines' addresses")
    if not isinstance(ips, list):
        return
    if provider.get("head_ip") in ips:
        yield Problem(
            key="provider.worker_ips",
            message="also lists the head: starting a worker there would stop the head: remove it",
        )
    for key in ("min_workers", "max_workers"):
        count = cluster.content.get(key, len(ips))
        if isinstance(count, int) and count != len(ips):
            consequence = "those do not exist" if count > len(ips) else "the others stay unused"
            message = (
                f"{count}, but there are {len(ips)} worker_ips: {consequence}: write {len(ips)}"
            )
            yield Problem(key=key, message=message)
    start = find_ray_start(cluster, HEAD_COMMANDS)
    version_2 = start is None or start.environment.get("RAY_enable_autoscaler_v2") != "0"
    if version_2 and ips:
        yield Problem(
            key=HEAD_COMMANDS,
            message="Ray's newer autoscaler counts the head as a worker and leaves the last "
            "machine out: put RAY_enable_autoscaler_v2=0 before `ray start`",
        )


def _max_workers(cluster: ClusterFile, node_type: Mapping[str, Any]) -> int:
    total = cluster.content.get("max_workers", 2)  # Ray's default
    max_workers = node_type.get("max_workers", total)
    return min(max_workers, total) if isinstance(max_workers, int) and isinstance(total, int) else 0


def _parse_amounts(resources: Any) -> dict[str, float]:
    if not isinstance(resources, dict):
        return {}
    return {
        str(name): float(amount)
        for name, amount in resources.items()
        if isinstance(amount, int | float)
    }
