"""Sharded checkpoints: the same bits in any strategy, whole or not at all.

In a group of one process; several are in test_parallel.py.
"""

from __future__ import annotations

import copy
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chip_core.config.trial import TrialConfig
from chip_core.models import shards
from chip_core.models.adapters import attach_adapters, write_weights
from chip_core.models.parts import select_trained_parameters, set_trained
from chip_core.models.shards import gather_whole
from chip_core.training import checkpoint, sharded_state
from chip_core.training.checkpoint import Checkpointer, find_checkpoint_problem, list_checkpoints
from chip_core.training.optimizer.adamw import make_optimizer
from chip_core.training.parallel import Compute
from chip_core.training.policy import Policy
from chip_core.training.sharded_state import load_shards, save_shards
from chip_core.training.trainer import make_strategy
from chip_core.utils.errors import DiskFullError, UnfitError

from .. import families

pytestmark = pytest.mark.usefixtures("process_group")

CONFIG = TrialConfig.model_validate(
    {"model": "shapes", "language_model": "lora", "lora": {"rank": 2}, "optimizer": {"lr": 0.1}}
)


@pytest.fixture(scope="module")
def base() -> Any:
    return families.build("llava")[0]


class TrainedModel:
    """A model and its optimizer, sharded or not."""

    def __init__(self, base: Any, *, sharded: bool = False) -> None:
        self.model = attach_adapters(copy.deepcopy(base), CONFIG)
        set_trained(self.model, CONFIG)
        if sharded:
            policy = Policy(self.model, CONFIG.objective)
            make_strategy(policy, CONFIG, Compute(parallelism="fsdp"))
        self.optimizer, _ = make_optimizer(self.model, CONFIG, 2)
        self.parameters = [
            parameter
            for part in select_trained_parameters(self.model, CONFIG).values()
            for parameter in part.values()
        ]

    def update(self) -> None:
        """Change all but the last parameter, as where a stage has not begun."""
        for number, parameter in enumerate(self.parameters[:-1], start=1):
            parameter.grad = torch.full_like(parameter, number)
        self.optimizer.step()

    def names(self) -> dict[str, Any]:
        parts = select_trained_parameters(self.model, CONFIG).values()
        return {name: weight for part in parts for name, weight in part.items()}

    def make_checkpointer(self) -> Checkpointer:
        return Checkpointer(CONFIG, model=self.model, optimizer=self.optimizer, stateful={})

    def get_state(self) -> list[Any]:
        """All that a checkpoint is to give back, whole."""
        state = gather_whole(self.optimizer.state_dict())
        return [*(gather_whole(each.detach()) for each in self.parameters), state]


def is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("sharded", [True, False])
def test_sharded_state_comes_back_to_the_bit(base: Any, tmp_path: Path, sharded: bool) -> None:
    saved, other = TrainedModel(base, sharded=True), TrainedModel(base, sharded=sharded)
    saved.update()
    saved.make_checkpointer().save(tmp_path, 1)
    assert not is_equal(other.get_state(), saved.get_state())
    resumed = other.make_checkpointer().restore(tmp_path)
    assert resumed.step == 1
    assert is_equal(other.get_state(), saved.get_state())
    assert len(saved.optimizer.state) == len(other.optimizer.state) == len(saved.parameters) - 1


def test_what_an_earlier_version_left_whole_goes_on_sharded(base: Any, tmp_path: Path) -> None:
    """Format 1, which a training that is not sharded still writes."""
    saved, other = TrainedModel(base), TrainedModel(base, sharded=True)
    saved.update()
    saved.make_checkpointer().save(tmp_path, 1)
    assert other.make_checkpointer().restore(tmp_path).step == 1
    assert is_equal(other.get_state(), saved.get_state())


def test_large_states_go_into_several_files(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded_state, "FILE_BYTES", 1000)
    saved, other = TrainedModel(base, sharded=True), TrainedModel(base)
    saved.update()
    names, rest = save_shards(tmp_path / "s", saved.names(), optimizer=saved.optimizer)
    assert len(names) > 2
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == names
    load_shards(tmp_path / "s", other.names(), optimizer=other.optimizer, state=rest)
    assert is_equal(other.get_state(), saved.get_state())


def drop_tensor(tensors: dict[str, Any], info: dict[str, str]) -> None:
    del tensors[min(tensors)]


def drop_rows(tensors: dict[str, Any], info: dict[str, str]) -> None:
    """Drop all rows of a tensor but its last, in a shard that says so."""
    name = next(name for name, value in tensors.items() if value.ndim == 2 and len(value) > 1)
    tensors[name] = tensors[name][-1:].clone()
    offsets = f'"{name}": {{"saved_offsets": [0, 0]}}'
    assert offsets in info["DCP_SHARDING_INFO"]
    last = f'"{name}": {{"saved_offsets": [1, 0]}}'
    info["DCP_SHARDING_INFO"] = info["DCP_SHARDING_INFO"].replace(offsets, last)


@pytest.mark.parametrize("harm", [drop_tensor, drop_rows])
def test_what_is_not_whole_is_not_put_into_the_model(base: Any, tmp_path: Path, harm: Any) -> None:
    saved, other = TrainedModel(base, sharded=True), TrainedModel(base)
    saved.update()
    (name,), rest = save_shards(tmp_path, saved.names(), optimizer=saved.optimizer)
    with safe_open(tmp_path / name, framework="pt") as file:
        info = dict(file.metadata())
    tensors = load_file(tmp_path / name)
    harm(tensors, info)
    save_file(tensors, tmp_path / name, info)
    before = copy.deepcopy(other.get_state())
    with pytest.raises(UnfitError, match=r"lacks 1 of \d+ tensors, or has them in other shapes"):
        load_shards(tmp_path, other.names(), optimizer=other.optimizer, state=rest)
    assert is_equal(other.get_state(), before)


def test_a_full_disk_leaves_the_checkpoint_before(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DCP's own exception is no `Exception`: nothing that catches those would see it."""
    trained = TrainedModel(base, sharded=True)
    trained.make_checkpointer().save(tmp_path, 1)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sharded_state.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(DiskFullError, match="no space for the checkpoint after step 2"):
        trained.make_checkpointer().save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_it_has_its_name_when_all_of_it_is_there(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "sync_files", cut)
    with pytest.raises(KeyboardInterrupt):
        TrainedModel(base, sharded=True).make_checkpointer().save(tmp_path, 1)
    assert list_checkpoints(tmp_path) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        ".step-00000001.partial"
    ]


def test_a_shard_of_something_else_is_said(base: Any, tmp_path: Path) -> None:
    TrainedModel(base, sharded=True).make_checkpointer().save(tmp_path, 1)
    (left,) = list_checkpoints(tmp_path)
    assert find_checkpoint_problem(left, CONFIG) is None
    save_file({"more": torch.zeros(1)}, left / "shards" / "more.safetensors")
    assert find_checkpoint_problem(left, CONFIG) == "shards/more.safetensors does not belong to it"


def test_the_two_newest_checkpoints_are_kept(base: Any, tmp_path: Path) -> None:
    trained = TrainedModel(base, sharded=True)
    for step in (1, 2, 3):
        trained.make_checkpointer().save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_of_an_adapted_model_only_what_is_written_comes_together(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen model of 7B is 14 GB, its adapters are megabytes."""
    plain, sharded = TrainedModel(base), TrainedModel(base, sharded=True)
    gathered: list[int] = []

    def counting(value: Any, *, keep: bool = True) -> Any:
        gathered.append(value.numel())
        return gather_whole(value, keep=keep)

    monkeypatch.setattr(shards, "gather_whole", counting)
    write_weights(sharded.model, tmp_path / "sharded", CONFIG)
    write_weights(plain.model, tmp_path / "plain", CONFIG)
    assert sum(gathered) == sum(parameter.numel() for parameter in plain.parameters)
    for name in ("adapter_model.safetensors", "trained_parts.safetensors"):
        one, other = load_file(tmp_path / "plain" / name), load_file(tmp_path / "sharded" / name)
        assert is_equal(one, other) and one
