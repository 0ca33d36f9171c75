"""What of the caller's environment a cluster's processes get."""

from __future__ import annotations

from orchestrator.executors.ray.session import ENVIRONMENT, forwarded


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
    rays = dict(ENVIRONMENT)
    assert forwarded({**own, **kept_here, **rays}) == {**own, **rays}
