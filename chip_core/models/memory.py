"""Estimate how much device memory a training needs, before it starts."""

from __future__ import annotations

from typing import Any

import torch

from chip_core.config.trial import TrialConfig
from chip_core.models.parts import is_adapter, select_trained_parameters
from chip_core.utils.errors import TrialError

_BYTES_PER_VALUE = {"fp32": 4, "bf16": 2, "int8": 1}
_GIB = 2**30
_MAX_FREE_SHARE = (
    0.8  # share of a device's free memory that weights may take while they are checked
)


def estimate_required_bytes(model: Any, config: TrialConfig, *, reference: bool = True) -> int:
    """Return the bytes of weights, gradients, optimizer and reference, without activations.

    Weights are in `model.dtype`. Each trained one has a gradient, AdamW's two moments and, if it is
    in bf16, a master in fp32; the reference has a copy of it unless it is an adapter's.

    Args:
        model: with its adapters.
        config: says which parts are trained.
        reference: whether the reference is computed instead of read from stores.
    """
    weight_bytes = _BYTES_PER_VALUE[config.model.dtype]
    gradient_bytes = _BYTES_PER_VALUE[config.training.gradients]
    # 4-bit weights are stored in bytes of two weights.
    total: int = sum(
        parameter.numel() * (weight_bytes if parameter.is_floating_point() else 1)
        for parameter in model.parameters()
    )
    update_bytes = gradient_bytes + 2 * _BYTES_PER_VALUE[config.optimizer.states]
    if config.model.dtype == "bf16":
        update_bytes += _BYTES_PER_VALUE["fp32"]
    for parameters in select_trained_parameters(model, config).values():
        for name, parameter in parameters.items():
            copy_bytes = weight_bytes if reference and not is_adapter(name) else 0
            total += (update_bytes + copy_bytes) * parameter.numel()
    return total


def has_room_for_weights(model: Any, device: torch.device) -> bool:
    """Return whether a model's weights alone, in their dtypes, fit a device."""
    if device.type != "cuda":
        return True
    weight_bytes: int = sum(p.numel() * p.element_size() for p in model.parameters())
    return weight_bytes <= _MAX_FREE_SHARE * get_available_bytes(model, device)


def get_available_bytes(model: Any, device: torch.device) -> int:
    """Return the bytes that a model may take on a GPU, including its weights already there."""
    free: int = torch.cuda.mem_get_info(device)[0]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    loaded_bytes: int = sum(p.numel() * p.element_size() for p in model.parameters() if p.is_cuda)
    return free + unused + loaded_bytes


def check_memory(needed: int, free: int, config: TrialConfig) -> None:
    """Check that a training fits a device.

    Args:
        needed: bytes, from `estimate_required_bytes`.
        free: free bytes of the device.
        config: the trial, for the advice on what to change.

    Raises:
        TrialError: it does not fit; the message says what would fit.
    """
    if needed <= free:
        return
    advice = []
    if config.language_model == "full":
        advice.append("language_model: lora")
    if config.vision_encoder != "frozen":
        advice.append(f"vision_encoder: {'frozen' if config.vision_encoder == 'lora' else 'lora'}")
    if config.engine.workers_per_trial == 1 and config.model.quantize == "none":
        workers = max(2, -(-needed // max(free, 1)))
        advice.append(f"engine.workers_per_trial: {workers} with engine.parallel: fsdp")
    if config.engine.parallel == "hsdp":
        advice.append("engine.parallel: fsdp")
    advice.append("a GPU with more memory, or a smaller model")
    raise TrialError(
        "not enough memory on the GPU: weights, gradients, optimizer and reference take "
        f"{needed / _GIB:.1f} GiB, but only {free / _GIB:.1f} GiB are free: choose "
        f"{', or '.join(advice)}"
    )
