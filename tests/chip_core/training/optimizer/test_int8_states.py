"""Moments in 8 bits: near those in fp32, and to the bit the same after a checkpoint."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chip_core.config.trial import TrialConfig
from chip_core.models.parts import set_trained
from chip_core.models.precision import convert_weights
from chip_core.training.checkpoint import Checkpointer
from chip_core.training.optimizer.adamw import get_learning_rates, make_optimizer
from chip_core.training.optimizer.int8_states import get_optimizer_state, load_optimizer_state
from chip_core.training.optimizer.masters import MasterWeights
from chip_core.training.parallel import Compute
from chip_core.training.policy import Policy
from chip_core.training.trainer import make_strategy
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_records

from ... import families

Configured = Callable[..., TrialConfig]
needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
#: A weight of more than 4,096 entries in blocks of 256 has moments in 8 bits, others in fp32.
CONFIG = TrialConfig.model_validate(
    {
        "model": {"path": "shapes", "dtype": "bf16"},
        "optimizer": {"lr": 1e-3, "states": "int8", "schedule": "constant", "warmup": 0},
    }
)


class TrainedModel:
    """A model with one large weight among its trained ones, its masters and their optimizer."""

    def __init__(self, *, sharded: bool = False) -> None:
        model = convert_weights(families.build("llava")[0], "bf16")
        layer = model.get_decoder().layers[0].mlp
        layer.gate_proj = nn.Linear(256, 64, bias=False).bfloat16()
        torch.manual_seed(0)
        nn.init.normal_(layer.gate_proj.weight)
        self.trained = set_trained(model, CONFIG)
        self.model, self.large = model, layer
        if sharded:
            make_strategy(Policy(model, CONFIG.objective), CONFIG, Compute(parallelism="fsdp"))
            self.trained = set_trained(model, CONFIG)
        self.masters = MasterWeights(model, CONFIG)
        self.optimizer, self.schedule = make_optimizer(model, CONFIG, 9, self.masters)

    def update(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for weight in self.trained[:-1]:  # as where a stage has not begun
            made = torch.zeros_like(weight)
            local = made.to_local() if hasattr(made, "to_local") else made
            local.copy_(torch.randn(weight.shape, generator=draw))  # this process has all of it
            torch.autograd.backward([weight], [made])
        norm = self.masters.norm(self.trained, sharded=False)
        self.masters.update(self.trained, self.optimizer, norm, None)
        self.schedule.step()

    def make_checkpointer(self) -> Checkpointer:
        return Checkpointer(
            CONFIG,
            model=self.model,
            optimizer=self.optimizer,
            masters=self.masters,
            stateful={"schedule": self.schedule},
        )

    def get_state(self) -> list[torch.Tensor]:
        """All that decides the next update, as plain tensors."""
        state = get_optimizer_state(self.optimizer)["state"]
        moments = [value for _, entries in sorted(state.items()) for value in entries.values()]
        masters = [self.masters.master_of(weight).detach() for weight in self.trained]
        return [
            value.to_local() if hasattr(value, "to_local") else value for value in masters + moments
        ]


@needs_torchao
def test_moments_are_in_8_bits_and_updates_near_those_of_fp32() -> None:
    ours = TrainedModel()
    plain = [
        nn.Parameter(ours.masters.master_of(weight).detach().clone()) for weight in ours.trained
    ]
    start = [weight.detach().clone() for weight in plain]
    theirs = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.0)
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        for weight in plain[:-1]:
            weight.grad = torch.randn(weight.shape, generator=draw).bfloat16().float()
        theirs.step()
        ours.update(seed)
    kinds = [type(state["exp_avg"]).__name__ for state in ours.optimizer.state.values()]
    assert set(kinds) == {"OptimState8bit", "Tensor"}
    small = large = 0
    for weight, expected, before in zip(ours.trained[:-1], plain, start, strict=False):
        moved = (expected.detach() - before).norm()
        off = float((ours.masters.master_of(weight).detach() - expected.detach()).norm() / moved)
        if weight.numel() >= 4096:
            large += 1
            assert 0 < off < 0.05  # a moment is off by up to 1/50 or so of itself
        else:
            small += 1
            assert off < 1e-4
    assert small and large
    assert get_learning_rates(ours.optimizer, ours.schedule, CONFIG) == {"lr": pytest.approx(1e-3)}


@needs_torchao
@pytest.mark.parametrize("saver", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("reader", [False, True], ids=["to-whole", "to-sharded"])
def test_a_checkpoint_gives_back_the_same_bits(
    process_group: None, tmp_path: Path, saver: bool, reader: bool
) -> None:
    saved, other = TrainedModel(sharded=saver), TrainedModel(sharded=reader)
    for seed in range(3):
        saved.update(seed)
    saved.make_checkpointer().save(tmp_path, 3)
    other.update(7)  # it is not where it begins
    assert other.make_checkpointer().restore(tmp_path).step == 3
    for trained in (saved, other):
        trained.update(5)
    for one, two in zip(saved.get_state(), other.get_state(), strict=True):
        assert torch.equal(one.flatten(), two.flatten())  # a scale is of a row where it is spread


@needs_torchao
def test_putting_a_state_changes_no_weight() -> None:
    trained = TrainedModel()
    trained.update(0)
    before = copy.deepcopy(trained.get_state())
    load_optimizer_state(trained.optimizer, copy.deepcopy(get_optimizer_state(trained.optimizer)))
    assert all(torch.equal(one, two) for one, two in zip(trained.get_state(), before, strict=True))


@needs_torchao
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_training_with_them_is_near_one_without(
    shapes_config: Configured, tmp_path: Path, dtype: str
) -> None:
    losses: dict[str, Any] = {}
    for states in ("fp32", "int8"):
        model = {"path": "shapes", "dtype": dtype}
        config = shapes_config(model=model, optimizer__states=states, optimizer__lr=1e-4)
        run_trial(config, folder=tmp_path / states)
        records = read_records(tmp_path / states / "curves.jsonl")
        losses[states] = [record["figures"]["loss"] for record in records]
    assert losses["int8"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["int8"][0] == losses["fp32"][0]
    assert losses["int8"] != losses["fp32"]


def test_where_torchao_is_missing_it_is_refused_before_anything_is_loaded(
    shapes_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chip_core.evaluation.readiness.find_spec", lambda name: None)
    with pytest.raises(TrialError, match="int8, but torchao is not installed here: pip install"):
        run_trial(shapes_config(optimizer__states="int8"), folder=tmp_path)
    assert not (tmp_path / "config.json").exists()
