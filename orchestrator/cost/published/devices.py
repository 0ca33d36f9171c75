"""GPUs as their maker publishes them, and how much of one a training is known to use.

Nothing here was measured by this package. Each figure has its source beside it; recorded timings
take its place as soon as there are some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30

#: GiB of a device that driver, context and libraries hold: an allowance, not a measurement.
RESERVED_GIB = 2.0

#: GPUs of one machine: NVIDIA's DGX and HGX datasheets of H100, H200 and A100.
GPUS_PER_MACHINE = 8


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU."""

    name: str
    memory: int  # GiB
    bf16: float  # 1e12 operations a second, dense, on tensor cores
    fp32: float  # 1e12 operations a second, without them
    bandwidth: float  # 1e12 bytes a second
    source: str

    @property
    def usable_bytes(self) -> int:
        """Bytes that a training may take."""
        return int((self.memory - RESERVED_GIB) * GIB)


DEVICES = {
    device.name: device
    for device in (
        Device(
            name="h100-80gb", memory=80, bf16=989.4, fp32=66.9, bandwidth=3.35,
            source="NVIDIA H100 datasheet, SXM5 (half of the figure with sparsity)",
        ),
        Device(
            name="h200-141gb", memory=141, bf16=989.4, fp32=66.9, bandwidth=4.8,
            source="NVIDIA H200 datasheet, SXM5 (half of the figure with sparsity)",
        ),
        Device(
            name="a100-80gb", memory=80, bf16=312.0, fp32=19.5, bandwidth=2.039,
            source="NVIDIA A100 datasheet, SXM4",
        ),
        Device(
            name="a100-40gb", memory=40, bf16=312.0, fp32=19.5, bandwidth=1.555,
            source="NVIDIA A100 datasheet, SXM4",
        ),
        Device(
            name="l40s-48gb", memory=48, bf16=362.0, fp32=91.6, bandwidth=0.864,
            source="NVIDIA L40S datasheet (half of the figure with sparsity)",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UtilizationRange:
    """How much of a device's peak some work uses: the least and the most that is taken for it."""

    low: float
    high: float
    source: str


#: Of the operations: what is trained -> the share of peak.
UTILIZATION: dict[Literal["lora", "full"], UtilizationRange] = {
    "lora": UtilizationRange(
        low=0.13,
        high=0.428,
        source="low: estimated from the bytes that this package's step moves, not measured; "
        "high: NVIDIA NeMo AutoModel's performance summary, LoRA of Qwen2.5 7B on one H100, "
        "423 of 989.4 TFLOP/s",
    ),
    "full": UtilizationRange(
        low=0.27,
        high=0.39,
        source="low: estimated from the bytes that this package's step moves, not measured; "
        "high: pytorch/torchtitan docs/performance.md, Llama 3.1 8B on H100 with FSDP, 33 to "
        "39 %",
    ),
}

#: Tokens a second of a 7B model (32 layers), a row, in eager PyTorch: what launches kernels bounds
#: it. The other bound is reading all weights once a token.
EAGER_TOKENS = 25.5
EAGER_SOURCE = (
    "low: 25.5 tokens/s of Llama 7B in eager PyTorch, pytorch.org/blog, 'Accelerating Generative "
    "AI with PyTorch II'; high: all weights read once per token at the device's bandwidth"
)
EAGER_LAYERS = 32
