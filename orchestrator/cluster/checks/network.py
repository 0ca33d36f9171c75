"""Check that a cluster's machines are not reachable from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.cluster.checks.node_types import iter_worker_configs
from orchestrator.cluster.config import ClusterFile, Problem

SSH_PORT = 22


def network_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield what a cloud's machines expose. The provider `local` has no such keys."""
    if cluster.provider == "aws":
        yield from _aws_problems(cluster)
    elif cluster.provider == "gcp":
        yield from _gcp_problems(cluster)


def _aws_problems(cluster: ClusterFile) -> Iterator[Problem]:
    provider = cluster.section("provider")
    group = provider.get("security_group")
    rules = group.get("IpPermissions") if isinstance(group, dict) else None
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        if not (isinstance(rule, dict) and rule.get("FromPort") == rule.get("ToPort") == SSH_PORT):
            yield Problem(
                key=f"provider.security_group.IpPermissions[{index}]",
                message="opens more than ssh: remove it. Ray itself opens port 22, and all ports "
                "between the machines; everything else goes through a tunnel",
            )
    if provider.get("use_internal_ips") is True:
        return
    for name, config in iter_worker_configs(cluster):
        interfaces = config.get("NetworkInterfaces")
        is_private = isinstance(interfaces, list) and all(
            isinstance(entry, dict) and entry.get("AssociatePublicIpAddress") is False
            for entry in interfaces
        )
        if not (interfaces and is_private):
            yield _public_address_problem(f"available_node_types.{name}.node_config", "write "
                          "use_internal_ips: true and use_external_head_ip: true under provider, "
                          "and name private SubnetIds here")  # fmt: skip


def _gcp_problems(cluster: ClusterFile) -> Iterator[Problem]:
    for name, config in iter_worker_configs(cluster):
        key = f"available_node_types.{name}.node_config.networkInterfaces"
        interfaces = config.get("networkInterfaces")
        if not isinstance(interfaces, list) or not interfaces:
            yield _public_address_problem(key, "name the subnetwork, without accessConfigs")
            continue
        for index, interface in enumerate(interfaces):
            if isinstance(interface, Mapping) and interface.get("accessConfigs"):
                yield _public_address_problem(f"{key}[{index}].accessConfigs", "drop it")


def _public_address_problem(key: str, remedy: str) -> Problem:
    return Problem(key=key, message=f"workers would get a public address: {remedy}")


def placeholder_problems(content: Any, path: str = "") -> Iterator[Problem]:
    """Yield values that are still examples: FILL-IN, and addresses reserved for documentation."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from placeholder_problems(value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from placeholder_problems(value, f"{path}[{index}]")
    elif isinstance(content, str):
        is_example = content.startswith(("192.0.2.", "198.51.100.", "203.0.113."))  # RFC 5737
        for word in content.split():
            if is_example or "FILL-IN" in word:
                yield Problem(key=path, message=f"'{word}' is an example: fill in your own")
