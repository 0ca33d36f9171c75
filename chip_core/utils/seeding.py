"""Seeds and generators as functions of what they are used for.

Each draw has its own generator, seeded by a hash of its purpose and key, so that no draw affects
another and a resumed or reordered run gets the same numbers.
"""

from __future__ import annotations

import hashlib
import os
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*key: object) -> int:
    """Return a 63-bit seed for a key, the same in every process and Python version."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_generator(*key: object) -> torch.Generator:
    """Return a CPU generator for a key, e.g. `("corruption", 0, sample_id)`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*key))


def seed_process(seed: int, threads: int | None = None) -> None:
    """Seed the global generators and request deterministic kernels in the stated precision.

    On CPU every kernel used is deterministic; on CUDA those without a deterministic form warn.
    """
    # cuBLAS reads it on first use. Its results repeat with one workspace or two fixed ones.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Otherwise every new tensor is filled before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Full fp32, also in convolutions, which cuDNN otherwise rounds to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Planning each new shape takes it longer than the attention.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if threads is not None:
        torch.set_num_threads(threads)
