"""List a cluster file's node types, and how many of each it may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.checks.start_commands import HEAD, WORKER, declared_resources, ray_start
from orchestrator.cluster.config import LOCAL, ClusterFile, Problem


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A type of machine."""

    key: str  # key in the file
    head: bool
    most: int  # largest number of machines
    resources: Mapping[str, float]  # per machine, with Ray's names, as far as given


def node_types(cluster: ClusterFile) -> list[NodeType]:
    """Return the head's type first, then the workers'."""
    if cluster.provider == LOCAL:
        return _local(cluster)
    head_type = cluster.content.get("head_node_type")
    found = []
    for name, written in cluster.section("available_node_types").items():
        if not isinstance(written, dict):
            continue
        head = name == head_type
        found.append(
            NodeType(
                key=f"available_node_types.{name}",
                head=head,
                most=1 if head else _most(cluster, written),
                resources=_amounts(written.get("resources"))
                | declared_resources(ray_start(cluster, HEAD if head else WORKER)),
            )
        )
    return sorted(found, key=lambda kind: not kind.head)


def worker_types(cluster: ClusterFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and `node_config` of each node type but the head's."""
    for name, written in cluster.section("available_node_types").items():
        config = written.get("node_config") if isinstance(written, dict) else None
        if name != cluster.content.get("head_node_type") and isinstance(config, dict):
            yield name, config


def node_type_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield the problems of the node types."""
    if cluster.provider == LOCAL:
        yield from _local_problems(cluster)
        return
    kinds = cluster.section("available_node_types")
    if not kinds:
        yield Problem(
            key="available_node_types", what="is missing: name the head's and the workers'"
        )
        return
    head = cluster.content.get("head_node_type")
    if head not in list(kinds):  # it need not be hashable
        what = f"'{head}' is none of available_node_types: {', '.join(map(str, kinds))}"
        yield Problem(key="head_node_type", what=what)
    if not any(True for _ in worker_types(cluster)):
        yield Problem(key="available_node_types", what="has no workers: add a type for them")
    for name, written in kinds.items():
        if name != head and isinstance(written, dict) and written.get("max_workers") == 0:
            key = f"available_node_types.{name}.max_workers"
            yield Problem(key=key, what="0: no machine of it is ever started: raise it, or drop it")
    most = cluster.content.get("max_workers", 2)  # Ray's default
    if most == 0:
        yield Problem(key="max_workers", what="0: no worker is ever started: raise it")
    fewest = sum(
        written["min_workers"]
        for name, written in kinds.items()
        if name != head
        and isinstance(written, dict)
        and isinstance(written.get("min_workers"), int)
    )
    if isinstance(most, int) and 0 < most < fewest:  # `ray up` refuses it
        what = f"{most}, and the types' min_workers are {fewest} together: raise it"
        yield Problem(key="max_workers", what=what)


def _local(cluster: ClusterFile) -> list[NodeType]:
    ips = cluster.section("provider").get("worker_ips")
    count = len(ips) if isinstance(ips, list) else 0
    most = cluster.content.get("max_workers", count)
    said = dict(cluster.settings.worker) if cluster.settings else {}
    head, worker = ray_start(cluster, HEAD), ray_start(cluster, WORKER)
    return [
        NodeType(key="provider.head_ip", head=True, most=1, resources=declared_resources(head)),
        NodeType(
            key="provider.worker_ips",
            head=False,
            most=min(count, most) if isinstance(most, int) else count,
            resources=said | declared_resources(worker),
        ),
    ]


def _local_problems(cluster: ClusterFile) -> Iterator[Problem]:
    provider = cluster.section("provider")
    ips = provider.get("worker_ips")
    for key, wrong in (
        ("head_ip", not isinstance(provider.get("head_ip"), str)),
        ("worker_ips", not isinstance(ips, list)),
    ):
        if wrong and "coordinator_address" not in provider:
            yield Problem(key=f"provider.{key}", what="is missing: say the machines' addresses")
    if not isinstance(ips, list):
        return
    if provider.get("head_ip") in ips:
        yield Problem(
            key="provider.worker_ips",
            what="holds the head, too: starting the worker there would stop the head: drop it",
        )
    for key in ("min_workers", "max_workers"):
        said = cluster.content.get(key, len(ips))
        if isinstance(said, int) and said != len(ips):
            more = "those are not there" if said > len(ips) else "the others stay unused"
            what = f"{said}, and there are {len(ips)} worker_ips: {more}: write {len(ips)}"
            yield Problem(key=key, what=what)
    start = ray_start(cluster, HEAD)
    version_2 = start is None or start.environment.get("RAY_enable_autoscaler_v2") != "0"
    if version_2 and ips:
        yield Problem(
            key=HEAD,
            what="Ray's newer autoscaler counts the head as a worker and leaves the last machine "
            "out: put RAY_enable_autoscaler_v2=0 before `ray start`",
        )


def _most(cluster: ClusterFile, written: Mapping[str, Any]) -> int:
    whole = cluster.content.get("max_workers", 2)  # Ray's default
    most = written.get("max_workers", whole)
    return min(most, whole) if isinstance(most, int) and isinstance(whole, int) else 0


def _amounts(written: Any) -> dict[str, float]:
    if not isinstance(written, dict):
        return {}
    return {
        str(name): float(amount)
        for name, amount in written.items()
        if isinstance(amount, int | float)
    }
