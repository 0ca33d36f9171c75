"""A whole training of a model, for tests that look at what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chip_core.config.trial import TrialConfig
from chip_core.training.parallel import Compute
from chip_core.training.trainer import Trainer, TrainingResult


def train(
    config: TrialConfig,
    *,
    model: Any,
    processor: Any,
    pairs: Any,
    folder: Path,
    compute: Compute | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a model in place; `options` are those of `Trainer.train`."""
    options.setdefault("on_step", lambda *_: None)
    with Trainer(
        config, model=model, processor=processor, pairs=pairs, folder=folder, compute=compute
    ) as trainer:
        return trainer.train(**options)
