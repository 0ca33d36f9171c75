"""Who listens on a machine, and whom each listener lets in without the token."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from dataclasses import dataclass

#: One call of each of Ray's services: (method, whether the answer comes as one message).
CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.object_manager.v1.ObjectManagerService/FreeObjects",
    "/ray.rpc.ObjectManagerService/FreeObjects",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.LogService/ListLogs",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/grpc.health.v1.Health/Check",
)
#: gRPC's answers of a server that has no such method.
_UNKNOWN = ("UNIMPLEMENTED",)


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A listening socket."""

    address: str
    port: int
    program: str

    @property
    def loopback(self) -> bool:
        """Whether only the machine itself reaches it."""
        return self.address in ("127.0.0.1", "::ffff:127.0.0.1", "::1")


def listeners(ss: str) -> list[Listener]:
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


def answer(ip: str, port: int, token: str | None) -> str:
    """Return how a port answers from another machine: refused, or what was let through.

    Each is tried as HTTP first, then by one call of each of Ray's gRPC services.
    """
    told = _http(ip, port, token)
    return told if told is not None else _grpc(ip, port, token)


def _http(ip: str, port: int, token: str | None) -> str | None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    worst = None
    for path in ("/api/version", "/metrics", "/get_runtime_envs_info", "/api/local_raylet_healthz"):
        connection = http.client.HTTPConnection(ip, port, timeout=5)
        try:
            connection.request("GET", path, headers=headers)
            status = connection.getresponse().status
        except ConnectionRefusedError:
            return "closed"
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if status == 200:
            return f"HTTP 200 {path}"
        if worst is None or status in (401, 403):
            worst = f"HTTP {status}"
    return worst


def _grpc(ip: str, port: int, token: str | None) -> str:
    import grpc

    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    told = []
    with grpc.insecure_channel(f"{ip}:{port}") as channel:
        for call in CALLS:
            ask = channel.unary_unary(call, request_serializer=None, response_deserializer=None)
            try:
                ask(b"", timeout=3, metadata=metadata)
                return f"gRPC OK {call.rpartition('/')[2]}"
            except grpc.RpcError as error:
                told.append(error.code().name)
    known = [code for code in told if code not in _UNKNOWN]
    return f"gRPC {known[0] if known else told[0]}"


if __name__ == "__main__":  # on a machine: ports.py IP PORT... reads the token from its input
    given = sys.stdin.read().strip() or None
    print(json.dumps({port: answer(sys.argv[1], int(port), given) for port in sys.argv[2:]}))


def answers(ip: str, ports: list[int], token: str | None) -> dict[int, str]:
    """Ask every port in a process of its own: gRPC keeps threads."""
    done = subprocess.run(
        [sys.executable, __file__, ip, *map(str, ports)],
        input=token or "", capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return {int(port): told for port, told in json.loads(done.stdout).items()}
