"""The optimizer, its learning rate for each part, its schedule, and the stages of a training."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from chip_core.config.trial import OptimizerConfig, TrialConfig
from chip_core.models.parts import Part, select_trained_parameters
from chip_core.training.optimizer.int8_states import make_int8_adamw_class
from chip_core.training.optimizer.masters import MasterWeights


def make_optimizer(
    policy: Any, config: TrialConfig, steps: int, masters: MasterWeights | None = None
) -> tuple[Any, Any]:
    """Return (AdamW, schedule) for the trained parameters, with one parameter group for each part.

    AdamW skips a parameter without a gradient (of a later stage), including its weight decay.

    Args:
        policy: the model.
        config: the trial.
        steps: the total number of updates.
        masters: updated instead of the trained weights; None: the weights themselves are updated.
    """
    settings = config.optimizer
    groups = [
        {
            "params": [
                weight if masters is None else masters.master_of(weight)
                for weight in parameters.values()
            ],
            "lr": get_part_learning_rate(settings, part) or settings.lr,
            "part": part,
        }
        for part, parameters in select_trained_parameters(policy, config).items()
    ]
    optimizer = _make_adamw(settings, groups)
    # transformers' own schedules are the same, and take 0.3 CPU s to import.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(compute_schedule_factor, settings, steps)
    )
    return optimizer, schedule


def _make_adamw(settings: OptimizerConfig, groups: list[dict[str, Any]]) -> Any:
    options: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.states == "int8":
        return make_int8_adamw_class()(groups, **options)
    # One kernel for all on a GPU; on a CPU torch's default, parameter by parameter.
    cuda = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **options, fused=True if cuda else None)


def compute_schedule_factor(settings: OptimizerConfig, steps: int, done: int) -> float:
    """Return the share of the peak rate after `done` updates: linear warmup, then the schedule."""
    warmup = math.ceil(settings.warmup * steps)
    if done < warmup:
        return done / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (done - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def get_part_learning_rate(settings: OptimizerConfig, part: Part) -> float | None:
    """Return a part's own learning rate; None: it has the common one."""
    return {
        "vision_encoder": settings.vision_lr,
        "projector": settings.projector_lr,
        "language_model": None,
    }[part]


def get_learning_rates(optimizer: Any, schedule: Any, config: TrialConfig) -> dict[str, float]:
    """Return the current learning rates: `lr`, and `lr/PART` of each part with its own rate."""
    rates: dict[str, float] = {}
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        has_own_rate = get_part_learning_rate(config.optimizer, group["part"]) is not None
        rates[f"lr/{group['part']}" if has_own_rate else "lr"] = float(rate)
    return rates


def count_encoder_steps(config: TrialConfig, steps: int) -> int:
    """Return the number of updates before a staged training trains all parts; 0: not staged.

    Each stage has at least one update, if there are two.
    """
    if config.vision_encoder != "staged":
        return 0
    return min(max(round(config.staged.share * steps), 1), steps - 1)
