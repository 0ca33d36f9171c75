"""How Ray is started, and what of the caller's environment a cluster's processes get."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray

from chip_core.utils.errors import UserError
from orchestrator.executors.ray import session
from orchestrator.executors.ray.session import PROCESS_ENVIRONMENT, forwarded_environment


def test_settings_of_hub_gpus_and_memory_go_along_and_no_token() -> None:
    own = {
        "HF_HOME": "/data/hub",
        "HF_HUB_OFFLINE": "1",
        "NCCL_SOCKET_IFNAME": "eth1",
        "TORCH_NCCL_BLOCKING_WAIT": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    }
    kept_here = {
        "HF_TOKEN": "secret",
        "HF_TOKEN_PATH": "/home/me/token",
        "HUGGINGFACE_HUB_TOKEN": "secret",
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    rays = dict(PROCESS_ENVIRONMENT)
    assert forwarded_environment({**own, **kept_here, **rays}) == {**own, **rays}


def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:  # as Ray 2.60 does on a machine that is too busy
        begun.append(subprocess.Popen(["sleep", "600"]))
        raise Exception("The current node timed out during startup.\nMore of it")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(session, "_SHUTDOWN_GRACE_SECONDS", 0.1)
    with pytest.raises(UserError) as told, session.connect_ray(None, []):
        pass
    assert str(told.value) == (
        "Ray does not start on this machine (The current node timed out during startup.): "
        "run the command again when the machine is less busy, or with --executor inline"
    )
    assert begun[0].wait(10) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
