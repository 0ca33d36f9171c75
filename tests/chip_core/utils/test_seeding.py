"""What a process is asked for before it computes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from chip_core.utils.seeding import seed_process


@pytest.fixture(autouse=True)
def _restored_state() -> Iterator[None]:
    """Put back what is the process's."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled


def test_kernels_are_deterministic_and_compute_in_what_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    seed_process(3)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_new_memory_is_not_filled_with_what_nobody_reads() -> None:
    """Deterministic mode fills a new tensor with NaN: what freed memory held stays here."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    seed_process(3)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.empty(1000).isnan().all()


def test_a_callers_own_workspace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    seed_process(3)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_seed_decides_what_is_drawn() -> None:
    def drawn(seed: int) -> list[float]:
        seed_process(seed)
        return torch.rand(3).tolist()

    assert drawn(1) == drawn(1) != drawn(2)
