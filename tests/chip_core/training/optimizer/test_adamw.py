"""The learning rate over a training, against transformers' own schedules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import get_scheduler

from chip_core.config.trial import TrialConfig
from chip_core.models import loading
from chip_core.models.parts import set_trained
from chip_core.training.optimizer.adamw import get_learning_rates, make_optimizer


@pytest.mark.parametrize(
    ("schedule", "name"), [("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_rate_is_transformers_own(
    shapes_config: Callable[..., TrialConfig], schedule: str, name: str, warmup: float
) -> None:
    config = shapes_config(optimizer={"lr": 3e-4, "schedule": schedule, "warmup": warmup})
    model, _ = loading.load(config.model)
    set_trained(model, config)
    steps = 13
    optimizer, ours = make_optimizer(model, config, steps)
    reference = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-4)
    # Warm-up is ceil(0.25 × 13) = 4 steps.
    theirs = get_scheduler(
        name, reference, num_warmup_steps=4 if warmup else 0, num_training_steps=steps
    )
    for _ in range(steps + 1):
        assert get_learning_rates(optimizer, ours, config) == {"lr": theirs.get_last_lr()[0]}
        optimizer.step()
        ours.step()
        reference.step()
        theirs.step()
