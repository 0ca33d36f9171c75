"""Random draws as functions of what they are for.

Each draw has its own generator, seeded by a hash of its purpose and key, so that no draw moves
another and a resumed or reordered run sees the same numbers.
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derived_seed(*key: object) -> int:
    """Return a 63-bit seed for a key, the same in every process and version of Python."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """Return a CPU generator for a key, e.g. `("corruption", 0, sample_id)`."""
    import torch

    return torch.Generator().manual_seed(derived_seed(*key))


def seed_process(seed: int, threads: int | None = None) -> None:
    """Seed the global generators and ask for deterministic kernels that compute as they say.

    On CPU every kernel used is deterministic; on CUDA those without a deterministic form warn.
    """
    # cuBLAS reads it when it is first used. One workspace or two fixed ones are what it repeats by.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Else every new tensor is filled first, with what nobody reads.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # fp32 means fp32, in convolutions too, which cuDNN rounds to 10 bits where it may.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Its plan for each new shape takes longer than the attention.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if threads is not None:
        torch.set_num_threads(threads)
