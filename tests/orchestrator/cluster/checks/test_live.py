"""What the machines of a running cluster answer, and what ssh says when they do not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chip_core.utils.errors import UserError
from orchestrator.cluster.checks.live import OUTPUT_PREFIX, live_problems
from orchestrator.cluster.checks.versions import local_versions
from orchestrator.cluster.config import ClusterFile, Settings
from orchestrator.cluster.head import Head, UnreachableError, find_head

HEAD = Head(user="u", address="10.0.0.1", key=None, proxy="nc %h %p", dashboard=8265)
FILE = ClusterFile(
    path=Path("c.yaml"),
    content={"provider": {"type": "local"}, "min_workers": 1},
    settings=Settings(venv="/v", shared="/mnt/s", workdir="/mnt/s/w", worker={"CPU": 16}),
)


def make_machine(*, head: bool = False, **changed: Any) -> dict[str, Any]:
    return {
        "address": "10.0.0.1" if head else "10.0.0.2",
        "head": head,
        "resources": {"chip_driver": 64.0} if head else {"CPU": 16.0},
        "versions": local_versions(),
        "shared": True,
        **changed,
    }


def find_problems(
    machines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    commands = []

    def run(self: Head, command: str, timeout: float = 0) -> str:
        commands.append(command)
        return f"a word of Ray's\n{OUTPUT_PREFIX}{json.dumps(machines)}\n"

    monkeypatch.setattr(Head, "run", run)
    found = [(problem.key, problem.message) for problem in live_problems(FILE, HEAD)]
    assert commands == [
        "RAY_AUTH_MODE=token /v/bin/python -m orchestrator.cluster.checks.live /mnt/s"
    ]
    return found


def test_a_good_cluster_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_problems([make_machine(head=True), make_machine()], monkeypatch) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"versions": {**local_versions(), "ray": "2.9.0"}},
            "ray is 2.9.0, but this machine has ray 2.",
        ),
        (
            {"versions": {**local_versions(), "python": "3.9.1"}},
            "python is 3.9.1, but this machine has python 3.",
        ),
        ({"shared": False}, "does not see in /mnt/s what the head wrote there"),
        ({"resources": {"CPU": 16.0, "chip_driver": 4.0}}, "is a worker and offers chip_driver"),
        ({"resources": {"CPU": 8.0}}, "has 8 CPU, but metadata.chip_ablate.worker says 16"),
        ({"error": "the node died"}, "does not answer: the node died"),
    ],
)
def test_what_a_machine_lacks_is_told(
    changed: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((key, what),) = find_problems([make_machine(head=True), make_machine(**changed)], monkeypatch)
    assert key == "machine 10.0.0.2"
    assert words in what


def test_a_head_without_places_for_drivers_and_a_missing_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = find_problems([make_machine(head=True, resources={})], monkeypatch)
    assert first == ("machine 10.0.0.1", "offers no chip_driver: see the start commands")
    assert second[0] == "min_workers"
    assert second[1].startswith("0 of 1 workers are up")


def make_fake_run(code: int, out: str = "", err: str = "") -> Any:
    return lambda *_, **__: subprocess.CompletedProcess([], code, stdout=out, stderr=err)


def test_what_ssh_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", make_fake_run(255, err="noise\nPermission denied\n"))
    with pytest.raises(UnreachableError, match="^u@10.0.0.1: Permission denied$"):
        HEAD.run("true")
    monkeypatch.setattr(subprocess, "run", make_fake_run(3, out="no room"))
    with pytest.raises(UserError, match="`df` failed with exit code 3: no room") as raised:
        HEAD.run("df")
    assert not isinstance(raised.value, UnreachableError)
    monkeypatch.setattr(subprocess, "run", make_fake_run(0, out=""))
    with pytest.raises(UserError, match="no token in ~/.ray/auth_token: bring the cluster up"):
        HEAD.token()
    monkeypatch.setattr(subprocess, "run", make_fake_run(0, out="abc\n"))
    assert HEAD.token() == "abc"


def test_the_head_of_machines_of_ones_own_is_in_their_file() -> None:
    found = find_head(
        ClusterFile(
            path=Path("c.yaml"),
            content={
                "provider": {"type": "local", "head_ip": "10.0.0.1", "external_head_ip": "8.8.4.4"},
                "auth": {"ssh_user": "me", "ssh_private_key": "/k", "ssh_proxy_command": "p"},
                "head_start_ray_commands": ["/v/ray start --head --dashboard-port=8300"],
            },
            settings=None,
        )
    )
    assert found == Head(user="me", address="8.8.4.4", key=Path("/k"), proxy="p", dashboard=8300)
    assert "ProxyCommand=p" in found.ssh
