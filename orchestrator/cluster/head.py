"""Connect to the head node of a running cluster over ssh."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chip_core.utils.errors import UserError
from orchestrator.cluster.checks.start_commands import HEAD_COMMANDS, TOKEN_FILE, find_ray_start
from orchestrator.cluster.config import LOCAL_PROVIDER, ClusterFile

DASHBOARD_PORT = 8265  # Ray's default port
MLFLOW_PORT = 5000  # MLflow's


class UnreachableError(UserError):
    """The head does not answer now, but may later."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head's address and how to log in."""

    user: str
    address: str
    key: Path | None
    proxy: str | None  # ssh's ProxyCommand
    dashboard: int  # port, on its loopback

    @property
    def ssh(self) -> list[str]:
        """Return the ssh command up to the host.

        A host's key is accepted the first time and must not change afterwards.
        """
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "ConnectTimeout": "15",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
        }
        if self.proxy is not None:
            options["ProxyCommand"] = self.proxy
        arguments = ["ssh"]
        if self.key is not None:
            arguments += ["-i", str(self.key), "-o", "IdentitiesOnly=yes"]
        return arguments + [
            argument for name, value in options.items() for argument in ("-o", f"{name}={value}")
        ]

    @property
    def host(self) -> str:
        """Return user and address, as ssh takes them."""
        return f"{self.user}@{self.address}"

    def run(self, command: str, *, timeout: float = 120.0) -> str:
        """Run a shell command on the head and return what it prints.

        Args:
            command: for the user's shell there.
            timeout: seconds.

        Raises:
            Unreachable: ssh gets no connection.
            UserError: the command fails.
        """
        try:
            result = subprocess.run(
                [*self.ssh, self.host, command],
                capture_output=True, text=True, check=False, timeout=timeout,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"{self.host}: no answer within {timeout:g} s") from None
        if result.returncode == 255:  # ssh's own
            raise UnreachableError(
                f"{self.host}: {_last_line(result.stderr) or 'ssh gets no connection'}"
            )
        if result.returncode:
            raise UserError(
                f"{self.host}: `{command}` failed with exit code {result.returncode}: "
                f"{_last_line(result.stderr) or _last_line(result.stdout)}"
            )
        return result.stdout

    def token(self) -> str:
        """Return the token that the cluster was started with.

        Raises:
            Unreachable: ssh gets no connection.
            UserError: there is none: the cluster is not up.
        """
        token = self.run(f"cat {TOKEN_FILE} 2>/dev/null || true").strip()
        if not token:
            raise UserError(
                f"{self.host}: no token in {TOKEN_FILE}: bring the cluster up with `ray up`"
            )
        return token

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[int]:
        """Open an ssh tunnel to the head's dashboard, and yield its local port.

        Raises:
            Unreachable: ssh gets no connection.
        """
        port = _free_port()
        process = subprocess.Popen(
            [*self.ssh, "-N", "-o", "ExitOnForwardFailure=yes",
             "-L", f"127.0.0.1:{port}:127.0.0.1:{self.dashboard}", self.host],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours
        )  # fmt: skip
        try:
            _wait_for_tunnel(process, port, self.host)
            yield port
        finally:
            process.terminate()
            process.communicate()

    def fetch(self, source: str, target: Path) -> None:
        """Copy the content of a folder from the head to this machine.

        Raises:
            Unreachable: it cannot be copied.
        """
        target.mkdir(parents=True, exist_ok=True)
        self._rsync(f"{self.host}:{shlex.quote(source)}/", f"{target}/")

    def send(self, source: Path, target: str) -> None:
        """Copy the content of a folder from this machine to a folder created on the head.

        Raises:
            Unreachable: it cannot be copied.
            UserError: the folder cannot be created.
        """
        self.run(f"mkdir -p {shlex.quote(target)}")
        self._rsync(f"{source}/", f"{self.host}:{shlex.quote(target)}/")

    def tunnel_commands(self, venv: str, workdir: str) -> dict[str, str]:
        """Return the commands that open tunnels to the web pages, by page."""
        arguments = ["ssh"] + ([] if self.key is None else ["-i", str(self.key)])
        ssh_command = shlex.join(arguments)
        return {
            "dashboard": f"{ssh_command} -N -L {DASHBOARD_PORT}:127.0.0.1:{self.dashboard} "
            f"{self.host}",
            "MLflow": f"{ssh_command} -t -L {MLFLOW_PORT}:127.0.0.1:{MLFLOW_PORT} {self.host} "
            f"{venv}/bin/chip-ablate ui --workdir {shlex.quote(workdir)} --port {MLFLOW_PORT}",
        }

    def _rsync(self, source: str, target: str) -> None:
        try:
            result = subprocess.run(
                ["rsync", "-rt", "--rsh", shlex.join(self.ssh), source, target],
                capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            raise UserError("rsync is not on this machine: install it") from None
        if result.returncode:
            raise UnreachableError(f"{source} cannot be copied: {_last_line(result.stderr)}")


def find_head(cluster: ClusterFile) -> Head:
    """Return the head of a running cluster.

    Raises:
        UserError: the provider has no running head.
    """
    content, address = cluster.content, ""
    auth = cluster.section("auth")
    if cluster.provider == LOCAL_PROVIDER:
        provider = cluster.section("provider")
        address = str(provider.get("external_head_ip") or provider.get("head_ip"))
    else:
        auth, address = _query_cloud(dict(content), cluster.path)
    ray_start = find_ray_start(cluster, HEAD_COMMANDS)
    port = ray_start.option("--dashboard-port") if ray_start else None
    key = auth.get("ssh_private_key")
    return Head(
        user=str(auth.get("ssh_user", "ubuntu")),
        address=address,
        key=None if key is None else Path(str(key)).expanduser(),
        proxy=auth.get("ssh_proxy_command"),
        dashboard=int(port) if port else DASHBOARD_PORT,
    )


def _query_cloud(content: dict[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """Query a cloud for the head's address, and for the key that Ray created for it."""
    from ray.autoscaler.sdk import bootstrap_config, get_head_node_ip

    try:
        auth: dict[str, Any] = bootstrap_config(content)["auth"]
        return auth, str(get_head_node_ip(str(path)))
    except Exception as error:  # of a cloud's client
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: no running head: {first_line}: bring it up with `ray up`"
        ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_tunnel(process: subprocess.Popen[bytes], port: int, host: str) -> None:
    for _ in range(600):
        if process.poll() is not None:
            assert process.stderr is not None
            message = _last_line(process.stderr.read().decode(errors="replace"))
            raise UnreachableError(f"{host}: {message or 'the tunnel closed'}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise UnreachableError(f"{host}: no tunnel within 30 s")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
