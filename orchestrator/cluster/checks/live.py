"""Check the machines of a running cluster.

`python -m orchestrator.cluster.checks.live FOLDER` prints it as JSON.
"""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from chip_core.utils.errors import StorageError
from orchestrator.cluster.checks.versions import local_versions, version_differences
from orchestrator.cluster.config import SETTINGS_KEY, ClusterFile, Problem
from orchestrator.cluster.head import Head
from orchestrator.jobs.placement import DRIVER_RESOURCE
from orchestrator.storage.remote import RemoteStorage

OUTPUT_PREFIX = "CHIP-ABLATE-LIVE "  # before the JSON, since Ray may print, too
ANSWER_TIMEOUT = 120.0  # seconds for a machine's answer


def live_problems(cluster: ClusterFile, head: Head) -> Iterator[Problem]:
    """Query a running cluster, and yield mismatches.

    Raises:
        Unreachable: there is no connection.
        UserError: the command on the head fails.
    """
    assert cluster.settings is not None, "a file without settings is refused earlier"
    settings = cluster.settings
    storage = settings.storage or settings.shared
    assert storage is not None, "a file without storage is refused earlier"
    output = head.run(
        f"RAY_AUTH_MODE=token {settings.venv}/bin/python -m orchestrator.cluster.checks.live "
        f"{shlex.quote(storage)}",
        timeout=ANSWER_TIMEOUT + 60,
    )
    (line,) = (line for line in output.splitlines() if line.startswith(OUTPUT_PREFIX))
    machines: list[dict[str, Any]] = json.loads(line.removeprefix(OUTPUT_PREFIX))
    for machine in machines:
        key = f"machine {machine['address']}"
        if "error" in machine:
            yield Problem(key=key, message=f"does not answer: {machine['error']}")
            continue
        for message, name in version_differences(machine["versions"]):
            yield Problem(key=key, message=f"{name} is {message}")
        if not machine["shared"]:
            yield Problem(
                key=key,
                message=f"does not see in {storage} what the head wrote there: "
                + (
                    "mount the shared storage on it"
                    if settings.storage is None
                    else "give it credentials for the storage"
                ),
            )
        for name, declared in settings.worker.items():
            amount = machine["resources"].get(name, 0)
            if not machine["head"] and amount < declared:
                message = (
                    f"has {amount:g} {name}, but {SETTINGS_KEY}.worker says {declared:g}: write "
                    "the actual number"
                )
                yield Problem(key=key, message=message)
        drivers = machine["resources"].get(DRIVER_RESOURCE, 0)
        if machine["head"] != bool(drivers):
            message = "offers no" if machine["head"] else "is a worker and offers"
            yield Problem(key=key, message=f"{message} {DRIVER_RESOURCE}: see the start commands")
    expected = cluster.content.get("min_workers") if cluster.provider == "local" else None
    running = sum(not machine["head"] for machine in machines)
    if isinstance(expected, int) and running < expected:
        message = f"{running} of {expected} workers are up: see `ray exec {cluster.path}` with "
        yield Problem(
            key="min_workers", message=f"{message}'tail /tmp/ray/session_latest/logs/monitor*'"
        )


def query_machines(storage: str) -> list[dict[str, Any]]:
    """Query each machine of the cluster whose head this machine is.

    Args:
        storage: the storage, a folder or a URI; a file is written there, and removed.

    Raises:
        StorageError: it cannot be written.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    remote, probe_file = RemoteStorage(storage), f".seen-{secrets.token_hex(8)}"
    remote.write(probe_file, b"")
    try:

        @ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
        def probe() -> dict[str, Any]:
            return {"versions": local_versions(), "shared": _can_read(remote, probe_file)}

        nodes = [node for node in ray.nodes() if node["Alive"]]
        answers = [
            probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
        ]
        machines = []
        for node, answer in zip(nodes, answers, strict=True):
            resources = node["Resources"]
            machine = {
                "address": node["NodeManagerAddress"],
                "head": "node:__internal_head__" in resources,
                "resources": {
                    name: amount for name, amount in resources.items() if ":" not in name
                },
            }
            try:
                machine |= ray.get(answer, timeout=ANSWER_TIMEOUT)
            except Exception as error:  # Ray raises various errors for a lost machine
                machine["error"] = (str(error).splitlines() or [type(error).__name__])[0]
            machines.append(machine)
        return machines
    finally:
        remote.remove([probe_file])
        ray.shutdown()


def _can_read(remote: RemoteStorage, probe_file: str) -> bool:
    try:
        return bool(remote.read([probe_file]))
    except StorageError:
        return False


if __name__ == "__main__":
    print(f"\n{OUTPUT_PREFIX}{json.dumps(query_machines(sys.argv[1]))}", flush=True)
