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
from orchestrator.cluster.checks.versions import differences, here
from orchestrator.cluster.config import SETTINGS, ClusterFile, Problem
from orchestrator.cluster.head import Head
from orchestrator.jobs.placement import DRIVER_RESOURCE
from orchestrator.storage.remote import RemoteStorage

MARK = "CHIP-ABLATE-LIVE "  # before the JSON, since Ray may print, too
WAIT = 120.0  # seconds for a machine's answer


def live_problems(cluster: ClusterFile, head: Head) -> Iterator[Problem]:
    """Query a running cluster, and yield mismatches.

    Raises:
        Unreachable: there is no connection.
        UserError: the command on the head fails.
    """
    assert cluster.settings is not None, "a file without settings is refused before"
    settings = cluster.settings
    place = settings.storage or settings.shared
    assert place is not None, "a file without storage is refused before"
    told = head.run(
        f"RAY_AUTH_MODE=token {settings.venv}/bin/python -m orchestrator.cluster.checks.live "
        f"{shlex.quote(place)}",
        timeout=WAIT + 60,
    )
    (line,) = (line for line in told.splitlines() if line.startswith(MARK))
    machines: list[dict[str, Any]] = json.loads(line.removeprefix(MARK))
    for machine in machines:
        where = f"machine {machine['address']}"
        if "error" in machine:
            yield Problem(key=where, what=f"does not answer: {machine['error']}")
            continue
        for what, name in differences(machine["versions"]):
            yield Problem(key=where, what=f"{name} is {what}")
        if not machine["shared"]:
            yield Problem(
                key=where,
                what=f"does not see in {place} what the head wrote there: "
                + (
                    "mount the shared storage on it"
                    if settings.storage is None
                    else "give it what lets it in"
                ),
            )
        for name, said in settings.worker.items():
            has = machine["resources"].get(name, 0)
            if not machine["head"] and has < said:
                what = f"has {has:g} {name}, and {SETTINGS}.worker says {said:g}: write what it has"
                yield Problem(key=where, what=what)
        offers = machine["resources"].get(DRIVER_RESOURCE, 0)
        if machine["head"] != bool(offers):
            what = "offers no" if machine["head"] else "is a worker and offers"
            yield Problem(key=where, what=f"{what} {DRIVER_RESOURCE}: see the start commands")
    expected = cluster.content.get("min_workers") if cluster.provider == "local" else None
    up = sum(not machine["head"] for machine in machines)
    if isinstance(expected, int) and up < expected:
        what = f"{up} of {expected} workers are up: see `ray exec {cluster.path}` with "
        yield Problem(key="min_workers", what=f"{what}'tail /tmp/ray/session_latest/logs/monitor*'")


def look(place: str) -> list[dict[str, Any]]:
    """Query each machine of the cluster whose head this machine is.

    Args:
        place: the storage, a folder or a URI; a file is written there, and removed.

    Raises:
        StorageError: it cannot be written.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    remote, mark = RemoteStorage(place), f".seen-{secrets.token_hex(8)}"
    remote.write(mark, b"")
    try:

        @ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
        def tell() -> dict[str, Any]:
            return {"versions": here(), "shared": _sees(remote, mark)}

        nodes = [node for node in ray.nodes() if node["Alive"]]
        asked = [
            tell.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in nodes
        ]
        found = []
        for node, answer in zip(nodes, asked, strict=True):
            resources = node["Resources"]
            machine = {
                "address": node["NodeManagerAddress"],
                "head": "node:__internal_head__" in resources,
                "resources": {
                    name: amount for name, amount in resources.items() if ":" not in name
                },
            }
            try:
                machine |= ray.get(answer, timeout=WAIT)
            except Exception as error:  # Ray raises various errors for a lost machine
                machine["error"] = (str(error).splitlines() or [type(error).__name__])[0]
            found.append(machine)
        return found
    finally:
        remote.remove([mark])
        ray.shutdown()


def _sees(remote: RemoteStorage, mark: str) -> bool:
    try:
        return bool(remote.read([mark]))
    except StorageError:
        return False


if __name__ == "__main__":
    print(f"\n{MARK}{json.dumps(look(sys.argv[1]))}", flush=True)
