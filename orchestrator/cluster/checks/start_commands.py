"""Parse and check the start commands of a cluster file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.cluster.config import ClusterFile, Problem

HEAD_COMMANDS, WORKER_COMMANDS = "head_start_ray_commands", "worker_start_ray_commands"
#: Lists of commands that run over ssh in a login shell.
COMMAND_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    HEAD_COMMANDS, WORKER_COMMANDS,
)  # fmt: skip
TOKEN_FILE = "~/.ray/auth_token"
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
#: Programs of the virtual environment, which may not be on a login shell's PATH.
_VENV_PROGRAM = re.compile(r"^(ray|chip-ablate|python[0-9.]*|pip[0-9.]*|mlflow)$")
_SEPARATOR = re.compile(r"^(;|&&|\|\||\||&|\(|\)|!|then|do|else|fi|done|\{|\})$")
#: Words that run the command after them.
_PREFIX_COMMANDS = ("if", "sudo", "exec", "env", "nohup", "setsid")
_ASSIGNMENT = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")


@dataclass(frozen=True, kw_only=True)
class ProgramCall:
    """One program of a command."""

    key: str  # its position in the file
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


def iter_calls(cluster: ClusterFile, *lists: str) -> Iterator[ProgramCall]:
    """Yield the programs of a file's commands. An invalid shell command yields none."""
    for name in lists:
        for index, text in enumerate(cluster.commands(name)):
            try:
                tokens = _tokenize(text)
            except ValueError:
                continue
            yield from _parse_calls(f"{name}[{index}]", tokens)


def find_ray_start(cluster: ClusterFile, name: str) -> ProgramCall | None:
    """Return the `ray start` of a list of commands, or None."""
    for call in iter_calls(cluster, name):
        if call.name == "ray" and call.arguments[:1] == ("start",):
            return call
    return None


def declared_resources(call: ProgramCall | None) -> dict[str, float]:
    """Return the resources that a `ray start` declares."""
    if call is None:
        return {}
    resources: dict[str, float] = {}
    for option, name in (("--num-cpus", "CPU"), ("--num-gpus", "GPU")):
        value = call.option(option)
        if value is not None and value.isdigit():
            resources[name] = float(value)
    try:
        extra = json.loads(call.option("--resources") or "{}")
        return resources | {str(name): float(amount) for name, amount in extra.items()}
    except (AttributeError, TypeError, ValueError):
        return resources  # reported by `_resource_problems`


def command_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield the problems of the commands: paths, the token, open ports."""
    for name in COMMAND_LISTS:
        for index, text in enumerate(cluster.commands(name)):
            try:
                _tokenize(text)
            except ValueError as error:
                yield Problem(
                    key=f"{name}[{index}]", message=f"is not a shell command ({error}): {text}"
                )
    for call in iter_calls(cluster, *COMMAND_LISTS):
        if _VENV_PROGRAM.match(call.program):
            yield Problem(
                key=call.key,
                message=f"'{call.program}' would be searched on a login shell's PATH: write the "
                f"absolute path, VENV/bin/{call.program}",
            )
    head, worker = find_ray_start(cluster, HEAD_COMMANDS), find_ray_start(cluster, WORKER_COMMANDS)
    for key, start in ((HEAD_COMMANDS, head), (WORKER_COMMANDS, worker)):
        if start is None:
            yield Problem(key=key, message="there is no `ray start` command: see cluster.yaml")
            continue
        if start.environment.get("RAY_AUTH_MODE") != "token":
            yield Problem(
                key=start.key,
                message="`ray start` accepts anyone who can reach its ports: put "
                "RAY_AUTH_MODE=token before it",
            )
        yield from _resource_problems(start)
    if head is not None:
        yield from _head_problems(head)
    if worker is not None and not (worker.option("--address") or "").startswith("$RAY_HEAD_IP"):
        yield Problem(
            key=worker.key, message="`ray start` of a worker needs --address=$RAY_HEAD_IP:PORT"
        )
    for key in ("image", "head_image", "worker_image"):
        if cluster.section("docker").get(key):
            yield Problem(
                key=f"docker.{key}",
                message="`run --cluster` reaches machines, not containers on them: install into "
                "metadata.chip_ablate.venv on the machines, and remove this",
            )
    yield from _token_problems(cluster)
    yield from _mlflow_problems(cluster)


def _head_problems(head: ProgramCall) -> Iterator[Problem]:
    if "--head" not in head.arguments:
        yield Problem(key=head.key, message="`ray start` of the head needs --head")
    if head.option("--autoscaling-config") is None:
        message = (
            "without --autoscaling-config=~/ray_bootstrap_config.yaml, no worker is ever started"
        )
        yield Problem(key=head.key, message=f"{message}: add it")
    host = head.option("--dashboard-host")
    if host is not None and host not in LOOPBACK_HOSTS:
        yield Problem(
            key=head.key,
            message=f"--dashboard-host={host} opens the dashboard, which runs any code that it is "
            "sent, to the network: write 127.0.0.1, and use a tunnel (ray dashboard FILE)",
        )


def _resource_problems(start: ProgramCall) -> Iterator[Problem]:
    value = start.option("--resources")
    if value is None:
        return
    try:
        resources = json.loads(value)
        is_valid = all(float(amount) >= 0 for amount in resources.values())
    except (AttributeError, TypeError, ValueError):
        is_valid = False
    if not is_valid:
        example = '{"chip_driver": 64}'
        message = (
            f"--resources={value} is not a JSON mapping of names and amounts: write '{example}'"
        )
        yield Problem(key=start.key, message=message)


def _token_problems(cluster: ClusterFile) -> Iterator[Problem]:
    is_mounted = TOKEN_FILE in cluster.section("file_mounts")
    is_generated = any(
        call.name == "ray" and call.arguments[:1] == ("get-auth-token",)
        and "--generate" in call.arguments
        for call in iter_calls(cluster, HEAD_COMMANDS, "head_setup_commands", "setup_commands")
    )  # fmt: skip
    if not is_mounted and not is_generated:
        yield Problem(
            key=HEAD_COMMANDS,
            message="no command creates a token: before `ray start`, write VENV/bin/ray "
            "get-auth-token --generate >/dev/null",
        )
    synced = cluster.content.get("cluster_synced_files")
    if not is_mounted and not (isinstance(synced, list) and TOKEN_FILE in synced):
        yield Problem(
            key="cluster_synced_files", message=f"workers get no token: write [{TOKEN_FILE}] here"
        )


def _mlflow_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield MLflow servers that listen on more than loopback."""
    for call in iter_calls(cluster, *COMMAND_LISTS):
        is_mlflow = (
            call.name == "mlflow" or call.arguments[:1] == ("ui",) or "mlflow" in call.arguments
        )
        host = call.option("--host")
        if is_mlflow and host is not None and host not in LOOPBACK_HOSTS:
            yield Problem(
                key=call.key,
                message=f"--host {host} opens MLflow, which has no authentication, to the "
                "network: write 127.0.0.1, and use a tunnel",
            )


def _tokenize(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "", True
    return list(lexer)


def _parse_calls(key: str, tokens: list[str]) -> Iterator[ProgramCall]:
    exported: dict[str, str] = {}
    current: list[str] = []
    for token in [*tokens, ";"]:
        if not _SEPARATOR.match(token):
            current.append(token)
            continue
        environment, (program, *arguments) = _split_assignments(current)
        current = []
        if program == "export":
            exported |= _split_assignments(arguments)[0]
        elif program:
            yield ProgramCall(
                key=key,
                program=program,
                arguments=tuple(arguments),
                environment=exported | environment,
            )


def _split_assignments(tokens: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the assignments before a program, and the program with its arguments."""
    environment = {}
    for index, token in enumerate(tokens):
        if _ASSIGNMENT.match(token):
            name, _, environment[name] = token.partition("=")
        elif token not in _PREFIX_COMMANDS:
            return environment, tokens[index:]
    return environment, [""]
