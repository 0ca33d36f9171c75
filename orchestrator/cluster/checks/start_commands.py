"""Parse and check the start commands of a cluster file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.cluster.config import ClusterFile, Problem

HEAD, WORKER = "head_start_ray_commands", "worker_start_ray_commands"
#: Lists of commands that run over ssh in a login shell.
LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    HEAD, WORKER,
)  # fmt: skip
TOKEN = "~/.ray/auth_token"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: Programs of the virtual environment, which a login shell's PATH need not have.
_OURS = re.compile(r"^(ray|chip-ablate|python[0-9.]*|pip[0-9.]*|mlflow)$")
_ENDS = re.compile(r"^(;|&&|\|\||\||&|\(|\)|!|then|do|else|fi|done|\{|\})$")
_BEFORE = ("if", "sudo", "exec", "env", "nohup", "setsid")  # words that run the command after them
_ASSIGNMENT = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One program of a command."""

    key: str  # where it stands in the file
    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]  # variables set for it

    @property
    def name(self) -> str:
        """Return the program without its folder."""
        return self.program.rpartition("/")[2]

    def option(self, name: str) -> str | None:
        """Return an option's value, given as `--name=value` or as `--name value`."""
        for index, word in enumerate(self.arguments):
            if word == name:
                return self.arguments[index + 1] if index + 1 < len(self.arguments) else ""
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return None


def calls(cluster: ClusterFile, *lists: str) -> Iterator[Call]:
    """Yield the programs of a file's commands. An invalid shell command yields none."""
    for name in lists:
        for index, text in enumerate(cluster.commands(name)):
            try:
                words = _words(text)
            except ValueError:
                continue
            yield from _calls(f"{name}[{index}]", words)


def ray_start(cluster: ClusterFile, name: str) -> Call | None:
    """Return the `ray start` of a list of commands, or None."""
    for call in calls(cluster, name):
        if call.name == "ray" and call.arguments[:1] == ("start",):
            return call
    return None


def declared_resources(call: Call | None) -> dict[str, float]:
    """Return the resources that a `ray start` declares."""
    if call is None:
        return {}
    found: dict[str, float] = {}
    for option, name in (("--num-cpus", "CPU"), ("--num-gpus", "GPU")):
        value = call.option(option)
        if value is not None and value.isdigit():
            found[name] = float(value)
    try:
        extra = json.loads(call.option("--resources") or "{}")
        return found | {str(name): float(amount) for name, amount in extra.items()}
    except (AttributeError, TypeError, ValueError):
        return found  # reported by `_wrong_resources`


def command_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield the problems of the commands: paths, the token, open ports."""
    for name in LISTS:
        for index, text in enumerate(cluster.commands(name)):
            try:
                _words(text)
            except ValueError as error:
                yield Problem(key=f"{name}[{index}]", what=f"is no shell command ({error}): {text}")
    for call in calls(cluster, *LISTS):
        if _OURS.match(call.program):
            yield Problem(
                key=call.key,
                what=f"'{call.program}' is looked for on the PATH of a login shell: write the "
                f"absolute path, VENV/bin/{call.program}",
            )
    head, worker = ray_start(cluster, HEAD), ray_start(cluster, WORKER)
    for key, start in ((HEAD, head), (WORKER, worker)):
        if start is None:
            yield Problem(key=key, what="no command is `ray start`: see cluster.yaml")
            continue
        if start.environment.get("RAY_AUTH_MODE") != "token":
            yield Problem(
                key=start.key,
                what="`ray start` lets in whoever reaches its ports: put RAY_AUTH_MODE=token "
                "before it",
            )
        yield from _wrong_resources(start)
    if head is not None:
        yield from _head_problems(head)
    if worker is not None and not (worker.option("--address") or "").startswith("$RAY_HEAD_IP"):
        yield Problem(
            key=worker.key, what="`ray start` of a worker needs --address=$RAY_HEAD_IP:PORT"
        )
    for key in ("image", "head_image", "worker_image"):
        if cluster.section("docker").get(key):
            yield Problem(
                key=f"docker.{key}",
                what="`run --cluster` reaches machines, not containers on them: install into "
                "metadata.chip_ablate.venv of the machines, and drop it",
            )
    yield from _token_problems(cluster)
    yield from _open_pages(cluster)


def _head_problems(head: Call) -> Iterator[Problem]:
    if "--head" not in head.arguments:
        yield Problem(key=head.key, what="`ray start` of the head needs --head")
    if head.option("--autoscaling-config") is None:
        what = "without --autoscaling-config=~/ray_bootstrap_config.yaml no worker is ever started"
        yield Problem(key=head.key, what=f"{what}: add it")
    host = head.option("--dashboard-host")
    if host is not None and host not in LOOPBACK:
        yield Problem(
            key=head.key,
            what=f"--dashboard-host={host} opens the dashboard, which runs what it is sent, to "
            "the network: write 127.0.0.1, and tunnel to it (ray dashboard FILE)",
        )


def _wrong_resources(start: Call) -> Iterator[Problem]:
    written = start.option("--resources")
    if written is None:
        return
    try:
        whole = json.loads(written)
        fine = all(float(amount) >= 0 for amount in whole.values())
    except (AttributeError, TypeError, ValueError):
        fine = False
    if not fine:
        example = '{"chip_driver": 64}'
        what = f"--resources={written} is no JSON of names and amounts: write '{example}'"
        yield Problem(key=start.key, what=what)


def _token_problems(cluster: ClusterFile) -> Iterator[Problem]:
    mounted = TOKEN in cluster.section("file_mounts")
    made = any(
        call.name == "ray" and call.arguments[:1] == ("get-auth-token",)
        and "--generate" in call.arguments
        for call in calls(cluster, HEAD, "head_setup_commands", "setup_commands")
    )  # fmt: skip
    if not mounted and not made:
        yield Problem(
            key=HEAD,
            what="nothing makes a token: before `ray start` write "
            "VENV/bin/ray get-auth-token --generate >/dev/null",
        )
    synced = cluster.content.get("cluster_synced_files")
    if not mounted and not (isinstance(synced, list) and TOKEN in synced):
        yield Problem(
            key="cluster_synced_files", what=f"workers get no token: write [{TOKEN}] here"
        )


def _open_pages(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield MLflow servers that listen on more than loopback."""
    for call in calls(cluster, *LISTS):
        pages = call.name == "mlflow" or call.arguments[:1] == ("ui",) or "mlflow" in call.arguments
        host = call.option("--host")
        if pages and host is not None and host not in LOOPBACK:
            yield Problem(
                key=call.key,
                what=f"--host {host} opens MLflow, which asks nobody who they are, to the "
                "network: write 127.0.0.1, and tunnel to it",
            )


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    return list(lexer)


def _calls(key: str, words: list[str]) -> Iterator[Call]:
    exported: dict[str, str] = {}
    current: list[str] = []
    for word in [*words, ";"]:
        if not _ENDS.match(word):
            current.append(word)
            continue
        environment, (program, *arguments) = _taken(current)
        current = []
        if program == "export":
            exported |= _taken(arguments)[0]
        elif program:
            yield Call(
                key=key,
                program=program,
                arguments=tuple(arguments),
                environment=exported | environment,
            )


def _taken(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the assignments before a program, and the program with its arguments."""
    environment = {}
    for index, word in enumerate(words):
        if _ASSIGNMENT.match(word):
            name, _, environment[name] = word.partition("=")
        elif word not in _BEFORE:
            return environment, words[index:]
    return environment, [""]
