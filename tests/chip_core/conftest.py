"""A tiny configuration that trains in seconds, on the embedded world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from chip_core import recipes
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import parse_trial_config, set_key


@pytest.fixture
def shapes_config() -> Callable[..., TrialConfig]:
    """The shapes recipe, shortened; keyword arguments are dotted keys with `__` for the dot."""

    def configured(**changes: Any) -> TrialConfig:
        torch.set_num_threads(1)
        tree = recipes.read_yaml(recipes.find_recipe("shapes"))
        short = {
            "training.max_steps": 3,
            "training.batch_size": 4,
            "engine.micro_batch": 4,
            "benchmarks": {},  # the recipe's has 1,000 questions
        }
        dotted = {name.replace("__", "."): value for name, value in changes.items()}
        for key, value in {**short, "optimizer.warmup": 0, **dotted}.items():
            set_key(tree, key, value)
        return parse_trial_config(tree, "test")

    return configured
