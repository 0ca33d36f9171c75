"""The shipped cluster files: Ray takes them, they come up closed, only places must be filled in."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.check import check_cluster
from orchestrator.cluster.checks.capacity import ResourceNeed
from orchestrator.cluster.checks.node_types import list_node_types

ROOT = Path(__file__).parent.parent
FILES = ("cluster.yaml", "clusters/aws.yaml", "clusters/gcp.yaml")
CLOUDS = FILES[1:]


def read_yaml(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return loaded


def fill_in(file: str) -> str:
    text = (ROOT / file).read_text().replace("FILL-IN", "mine")
    return re.sub(r"192\.0\.2\.(\d+)", r"10.0.0.\1", text)


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_it(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(read_yaml(file))))


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_wrong_with_it_but_the_places_to_fill_in(file: str, tmp_path: Path) -> None:
    as_shipped = check_cluster(ROOT / file)
    assert as_shipped.problems
    assert all("is an example: fill in your own" in line for line in as_shipped.lines)
    mine = tmp_path / "mine.yaml"
    mine.write_text(fill_in(file))
    # What a shipped recipe of a 7B model asks of a trial.
    need = ResourceNeed(num_workers=1, per_worker={"CPU": 4.0, "GPU": 1.0}, trials=12)
    checked = check_cluster(mine, need)
    assert checked.lines == []
    # Two machines of 4 GPUs, each of 16 CPUs; eight of one GPU, and of 8 or 12 CPUs.
    assert checked.capacity is not None
    assert (checked.capacity.slots, checked.capacity.at_once) == (8, 8)


@pytest.mark.parametrize("file", FILES)
def test_it_asks_for_the_token_and_makes_it_first(file: str) -> None:
    cluster = read_yaml(file)
    for who in ("head", "worker"):
        commands = cluster[f"{who}_start_ray_commands"]
        (start,) = [line for line in commands if " start " in line]
        assert "RAY_AUTH_MODE=token" in start
        assert " /opt/chip-ablate/.venv/bin/ray start " in start
    commands = cluster["head_start_ray_commands"]
    made = ["get-auth-token --generate" in line for line in commands].index(True)
    begun = ["ray start" in line for line in commands].index(True)
    assert made < begun
    assert commands[made].startswith("umask 077;")
    assert cluster["cluster_synced_files"] == ["~/.ray/auth_token"]


@pytest.mark.parametrize("file", FILES)
def test_pages_are_on_loopback_and_drivers_on_the_head_alone(file: str, tmp_path: Path) -> None:
    (head,) = [line for line in read_yaml(file)["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    mine = tmp_path / "mine.yaml"
    mine.write_text(fill_in(file))
    places = {
        kind.head: (kind.resources.get("chip_driver"), kind.resources.get("CPU"))
        for kind in list_node_types(check_cluster(mine).file)
    }
    assert places[True] == (64, 0)
    assert places[False][0] is None


@pytest.mark.parametrize("file", CLOUDS)
def test_a_cloud_scales_to_zero_on_spot_machines_and_its_head_stops_when_idle(file: str) -> None:
    cluster = read_yaml(file)
    head, worker = (cluster["available_node_types"][name] for name in ("head", "worker"))
    assert worker["min_workers"] == 0
    assert 0 < cluster["idle_timeout_minutes"] <= 10
    spot, demand = str(worker["node_config"]).lower(), str(head["node_config"]).lower()
    assert "spot" in spot
    assert "spot" not in demand
    (idle,) = [line for line in cluster["head_start_ray_commands"] if "cluster idle" in line]
    assert "--then 'sudo shutdown -h now'" in idle


def test_aws_opens_ssh_alone() -> None:
    provider = read_yaml("clusters/aws.yaml")["provider"]
    assert "IpPermissions" not in provider["security_group"]  # Ray's own: port 22, and inside all
    assert provider["use_internal_ips"] is True


def test_gcp_gives_workers_no_public_address() -> None:
    kinds = read_yaml("clusters/gcp.yaml")["available_node_types"]
    (interface,) = kinds["worker"]["node_config"]["networkInterfaces"]
    assert "accessConfigs" not in interface
    assert "accessConfigs" in kinds["head"]["node_config"]["networkInterfaces"][0]
