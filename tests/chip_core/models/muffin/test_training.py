"""A tiny Muffin trained: what is frozen stays, and a resumed training comes to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.models.adapters import attach_adapters
from chip_core.models.parts import group_parameters

from ... import families
from ...trainings import train

STEPS = 4


def make_config(**changes: Any) -> TrialConfig:
    tree: dict[str, Any] = {
        "model": "x",
        "objective": {"weights": {"segment": 1.0}},
        "optimizer": {"lr": 1e-3, "warmup": 0},
        "training": {"batch_size": 3, "epochs": STEPS, "max_length": 256},
        "engine": {"micro_batch": 2, "threads": 1, "checkpoint_every": 2},
    }
    return TrialConfig.model_validate({**tree, **changes})


def train_model(trial: TrialConfig, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Train; return the model and its weights as they were before."""
    model, processor = families.build("muffin")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model = attach_adapters(model, trial)
    train(
        trial, model=model, processor=processor, pairs=families.make_pairs(), folder=folder,
        **options,
    )  # fmt: skip
    return model, before


def test_frozen_is_the_released_trainings_learning_rate_of_0(tmp_path: Path) -> None:
    for how in ("frozen", "trained"):
        model, before = train_model(make_config(vision_encoder=how), tmp_path / how)
        state = model.state_dict()
        moved = {name for name, value in before.items() if not torch.equal(value, state[name])}
        image = {name for name in before if name in group_parameters(model)["vision_encoder"]}
        tower = "model.vision_tower."
        assert f"{tower}layers.0.image.q_proj.weight" in image
        assert {f"{tower}{name}" for name in ("cls_token", "patch_embedding.bias")} <= image
        assert not image & moved if how == "frozen" else image & moved
        trains = [f"{tower}query", f"{tower}layers.0.query.fc1.weight", "lm_head.weight"]
        assert {*trains, "model.multi_modal_projector.weight"} <= moved


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_encoder": "trained"},
        {"vision_encoder": "staged", "language_model": "lora", "lora": {"rank": 2}},
        {"training": {"label_rule": "released", "augment": "released"}},
    ],
    ids=["full", "lora-staged", "released"],
)
def test_a_resumed_training_comes_to_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    common = {"batch_size": 3, "epochs": STEPS, "max_length": 256}
    trial = make_config(**{**changes, "training": {**common, **changes.get("training", {})}})
    whole, _ = train_model(trial, tmp_path / "whole")

    def cut(step: int, *_: Any) -> None:
        if step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        train_model(trial, tmp_path / "first", on_step=cut)
    again, _ = train_model(trial, tmp_path / "second", resume_from=tmp_path / "first")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
