"""Who listens on a machine, and whom each listener lets in without the token."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from dataclasses import dataclass

#: What each of Ray's HTTP servers serves; the first that is not 404 tells.
PAGES = (
    "/api/job_agent/jobs/none/logs", "/get_runtime_envs_info", "/api/jobs/", "/metrics",
    "/api/local_raylet_healthz",
)  # fmt: skip
#: One call of each of Ray's services. Each server has one of them.
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/HealthCheck",
)
HEALTH = "/grpc.health.v1.Health/Check"  # says that the server is there, and nothing else


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A listening socket."""

    address: str
    port: int
    program: str

    @property
    def is_loopback(self) -> bool:
        """Whether only the machine itself reaches it."""
        return self.address in ("127.0.0.1", "::ffff:127.0.0.1", "::1")


def parse_listeners(ss: str) -> list[Listener]:
    """Read what `ss -ltnpH` prints."""
    found = set()
    for line in ss.splitlines():
        local = line.split()[3]
        address, _, port = local.rpartition(":")
        name = re.search(r'\(\("([^"]+)"', line)
        program = name[1] if name else "?"
        found.add((address.strip("[]"), int(port), program))
    return [
        Listener(address=address, port=port, program=program)
        for address, port, program in sorted(found, key=lambda each: each[1])
    ]


def probe_port(ip: str, port: int, token: str | None) -> str:
    """Return how a port answers from another machine: refused, or what was let through.

    It is tried as HTTP first, then by one call of each of Ray's gRPC services.
    """
    results = _probe_http(ip, port, token)
    return results if results is not None else _probe_grpc(ip, port, token)


def grants_access(results: str) -> bool:
    """Return whether an answer to a call without the token shows more than health and metrics."""
    refused = ("UNAUTHENTICATED", "PERMISSION_DENIED", "health OK", "metrics", "UNIMPLEMENTED")
    kind, _, rest = results.partition(" ")
    if kind == "gRPC":
        return not all(part.endswith(refused) for part in rest.split(", "))
    harmless = ("401", "403", "404", "200 /api/local_raylet_healthz", "200 metrics")
    return not all(part.startswith(harmless) for part in rest.split(", "))


def _probe_http(ip: str, port: int, token: str | None) -> str | None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    results = []
    for path in PAGES:
        connection = http.client.HTTPConnection(ip, port, timeout=10)
        try:
            connection.request("GET", path, headers=headers)
            answered = connection.getresponse()
            body = answered.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if b"# HELP" in body or body == b"":  # an exporter of metrics: the same at every path
            return f"HTTP {answered.status} metrics"
        if answered.status != 404:
            results.append(f"{answered.status} {path}")
    return f"HTTP {', '.join(results) or 404}"


def _probe_grpc(ip: str, port: int, token: str | None) -> str:
    import grpc

    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    results = []
    with grpc.insecure_channel(f"{ip}:{port}") as channel:
        for call in (*CALLS, HEALTH):
            ask = channel.unary_unary(call, request_serializer=None, response_deserializer=None)
            name = call.rpartition("/")[2] if call != HEALTH else "health"
            try:
                ask(b"", timeout=5, metadata=metadata)
                results.append(f"{name} OK")
            except grpc.RpcError as error:
                if error.code().name != "UNIMPLEMENTED":  # its server has no such service
                    results.append(f"{name} {error.code().name}")
    return f"gRPC {', '.join(results) or 'UNIMPLEMENTED'}"


def probe_ports(
    ip: str, ports: list[int], token: str | None, enter: tuple[str, ...] = ()
) -> dict[int, str]:
    """Ask every port, in a process of its own: gRPC keeps threads.

    Args:
        ip: of the machine that is asked.
        ports: of it.
        token: what is shown; None: nothing.
        enter: what the command begins with to be run on another machine.
    """
    done = subprocess.run(
        [*enter, sys.executable, __file__, ip, *map(str, ports)],
        input=token or "", capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return {int(port): results for port, results in json.loads(done.stdout).items()}


if __name__ == "__main__":  # on a machine: ports.py IP PORT... reads the token from its input
    given = sys.stdin.read().strip() or None
    print(json.dumps({port: probe_port(sys.argv[1], int(port), given) for port in sys.argv[2:]}))
