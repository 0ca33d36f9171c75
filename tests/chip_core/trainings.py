"""A whole training of a model, and what a training leaves in its folder."""

from __future__ import annotations

import hashlib
import json
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


def read_losses(folder: Path) -> list[float]:
    """Return the loss of each step of a training."""
    lines = (folder / "curves.jsonl").read_text().splitlines()
    return [json.loads(line)["figures"]["loss"] for line in lines]


def hash_outputs(folder: Path) -> dict[str, str]:
    """Return the hashes of a trial's weights and answers, by path."""
    files = [*folder.glob("model/*.safetensors"), *folder.glob("responses/**/*.jsonl")]
    assert len(files) >= 2
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }
