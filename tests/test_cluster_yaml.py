"""cluster.yaml is a cluster that Ray itself accepts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def check(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    check(cluster)


def test_ray_would_not_accept_anything(cluster: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="head_start_ray_command"):
        check({**cluster, "head_start_ray_command": []})


def test_start_commands_use_absolute_paths_and_a_token(cluster: dict[str, Any]) -> None:
    for who in ("head", "worker"):
        *_, start = cluster[f"{who}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token" in start
        assert " /opt/chip-ablate/.venv/bin/ray start " in start
    (head,) = [line for line in cluster["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "chip_driver" in head
