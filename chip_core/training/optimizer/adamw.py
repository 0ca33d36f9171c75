"""The optimizer with a learning rate for each part, its schedule, and the stages of a training."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from chip_core.config.trial import OptimizerConfig, TrialConfig
from chip_core.models.parts import Part, trained_parts
from chip_core.training.optimizer.int8_states import int8_adamw
from chip_core.training.optimizer.masters import Masters


def make_optimizer(
    policy: Any, config: TrialConfig, steps: int, masters: Masters | None = None
) -> tuple[Any, Any]:
    """Return (AdamW, schedule) over what is trained, one group of parameters a part.

    A parameter without a gradient (of a later stage) is passed over by AdamW, its weight decay too.

    Args:
        policy: the model.
        config: the trial.
        steps: updates in all.
        masters: what is updated in place of the trained weights; None: they themselves.
    """
    settings = config.optimizer
    groups = [
        {
            "params": [
                weight if masters is None else masters.of(weight) for weight in parameters.values()
            ],
            "lr": part_learning_rate(settings, part) or settings.lr,
            "part": part,
        }
        for part, parameters in trained_parts(policy, config).items()
    ]
    optimizer = _adamw(settings, groups)
    # transformers' own schedules are the same, and take 0.3 CPU s to import.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(schedule_factor, settings, steps)
    )
    return optimizer, schedule


def _adamw(settings: OptimizerConfig, groups: list[dict[str, Any]]) -> Any:
    options: dict[str, Any] = {
        "lr": settings.lr,
        "betas": settings.betas,
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
    }
    if settings.states == "int8":
        return int8_adamw()(groups, **options)
    # One kernel for all; on a CPU it is torch's own way, parameter by parameter.
    cuda = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return torch.optim.AdamW(groups, **options, fused=True if cuda else None)


def schedule_factor(settings: OptimizerConfig, steps: int, done: int) -> float:
    """Return the share of the peak rate after so many updates: up in a line, then its shape."""
    warmup = math.ceil(settings.warmup * steps)
    if done < warmup:
        return done / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (done - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def part_learning_rate(settings: OptimizerConfig, part: Part) -> float | None:
    """Return a part's own learning rate; None where it has that of all."""
    return {
        "vision_encoder": settings.vision_lr,
        "projector": settings.projector_lr,
        "language_model": None,
    }[part]


def learning_rates(optimizer: Any, schedule: Any, config: TrialConfig) -> dict[str, float]:
    """Return the current rate as `lr`, and `lr/PART` of each part that has its own."""
    rates: dict[str, float] = {}
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        own = part_learning_rate(config.optimizer, group["part"]) is not None
        rates[f"lr/{group['part']}" if own else "lr"] = float(rate)
    return rates


def encoder_only_steps(config: TrialConfig, steps: int) -> int:
    """Return after how many updates a staged training goes on to all parts; 0 if not staged.

    Each stage has an update at least, where there are two.
    """
    if config.vision_encoder != "staged":
        return 0
    return min(max(round(config.staged.share * steps), 1), steps - 1)
