"""Machines in a machine: each has its own processes, network, home and /tmp, and a real sshd.

Needs root (or a user namespace that maps it), iproute2, openssh-server and rsync. Everything is
made inside namespaces that end with the process: nothing of it can be seen, or seen from, outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NETWORK = "10.77.0"
CLIENT = f"{NETWORK}.1"
BASE = Path("/mnt")  # a tmpfs: upper folders of overlays cannot lie on an overlay
SHARED = BASE / "chip-ablate"
#: What each machine has for itself; what is below shines through, and is never written.
PRIVATE_FOLDERS = ("/root", "/tmp", "/opt", "/var/log", "/run", "/etc/ssh")
#: What a machine does not see of this one: its token, and its Ray.
HIDDEN_FOLDERS = ("/root/.ray", "/tmp/ray")
TOOLS = ("unshare", "nsenter", "ip", "ss", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")


def find_obstacle() -> str | None:
    """Return why machines cannot be made here."""
    missing = [Path(tool).name for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: openssh-server rsync iproute2)"
    tried = subprocess.run(
        [*UNSHARE, "sh", "-c", "mount -t tmpfs none /mnt && ip link add bridge0 type bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


UNSHARE = (
    "unshare",
    "--mount",
    "--net",
    "--ipc",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)


def make_namespace_command(script: Path, *arguments: str) -> list[str]:
    """Return the command that runs a script of this folder as the client machine."""
    return [*UNSHARE, sys.executable, str(script), *arguments]


class Machine:
    """One machine with sshd."""

    def __init__(self, name: str, number: int) -> None:
        """Start it.

        Args:
            name: of its folder below BASE.
            number: the last part of its address.
        """
        self.ip, self._link = f"{NETWORK}.{number}", f"to-{name}"
        folder = BASE / name
        folder.mkdir()
        given = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
        given |= {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        config = folder / "sshd_config"
        config.write_text(
            f"Port 22\nListenAddress {self.ip}\nHostKey {BASE}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {BASE}/key.pub\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nSubsystem sftp internal-sftp\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in given.items())}\n"
        )
        script = (
            f"read _; {make_overlay_commands(folder)}; mkdir -p /run/sshd; ip link set lo up; "
            f"ip addr add {self.ip}/24 dev eth0; ip link set eth0 up; "
            f"ip route add default via {CLIENT}; "
            f"exec /usr/sbin/sshd -D -e -f {config}"
        )
        with (folder / "sshd.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                [*UNSHARE, "sh", "-ec", script], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        self.pid = wait_for_child(self._unshare.pid)
        _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0",
             "netns", str(self.pid))  # fmt: skip
        _run("ip", "link", "set", self._link, "master", "bridge0", "up")
        assert self._unshare.stdin is not None
        self._unshare.stdin.write(b"go\n")
        self._unshare.stdin.close()

    @property
    def is_running(self) -> bool:
        """Whether it was not ended."""
        return self._unshare.poll() is None

    def kill(self) -> None:
        """Take it away with all that runs there, as if its power went: nobody hears of it."""
        _run("ip", "link", "set", self._link, "down")
        self._unshare.kill()
        self._unshare.wait()

    def run(self, *command: str) -> str:
        """Run a command on the machine, past sshd, and return what it prints."""
        return subprocess.run(
            [*self.enter_command, *command], capture_output=True, text=True, check=True
        ).stdout

    @property
    def enter_command(self) -> tuple[str, ...]:
        """Return what a command begins with to be run on the machine."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--ipc")

    def list_processes(self) -> list[str]:
        """Return the command lines of what runs there, but for sshd's and those that look."""
        found = []
        for line in self.run("ps", "-eo", "pid=,args=").splitlines():
            pid, args = line.split(maxsplit=1)
            if int(pid) != 1 and "sshd" not in args and not args.startswith("ps "):
                found.append(args)
        return found


def start_machines(count: int) -> list[Machine]:
    """Make the network, the shared folder and the machines; this process is the client."""
    _run("mount", "-t", "tmpfs", "none", str(BASE))
    SHARED.mkdir()
    client = BASE / "client"
    client.mkdir()
    _run("sh", "-ec", make_overlay_commands(client))
    for key in ("host_key", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(BASE / key))
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "bridge0", "type", "bridge")
    _run("ip", "addr", "add", f"{CLIENT}/24", "dev", "bridge0")
    _run("ip", "link", "set", "bridge0", "up")
    machines = [Machine(f"machine{number}", number + 1) for number in range(1, count + 1)]
    for machine in machines:
        _wait_for_ssh(machine.ip)
    return machines


def make_overlay_commands(folder: Path) -> str:
    """Return the shell commands that give a machine folders of its own."""
    commands = []
    for own in PRIVATE_FOLDERS:
        if not Path(own).is_dir():
            continue
        upper, work = (folder / kind / own.strip("/").replace("/", "-") for kind in ("up", "work"))
        commands.append(
            f"mkdir -p {upper} {work} && mount -t overlay overlay "
            f"-o lowerdir={own},upperdir={upper},workdir={work} {own}"
        )
    commands += [f"mkdir -p {secret} && mount -t tmpfs none {secret}" for secret in HIDDEN_FOLDERS]
    return "; ".join(commands)


def _wait_for_ssh(ip: str) -> None:
    for _ in range(200):
        asked = subprocess.run(["ssh-keyscan", "-T", "2", ip], capture_output=True, check=False)
        if asked.stdout:
            return
        time.sleep(0.05)
    raise TimeoutError(f"no sshd at {ip}")


def wait_for_child(pid: int) -> int:
    """Return the process id of a process's first child, once it has one."""
    for _ in range(200):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.02)
    raise TimeoutError("unshare started nothing")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
