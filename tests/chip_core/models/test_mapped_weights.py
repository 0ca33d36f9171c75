"""Weights had again from a file: as they were loaded, and a page of them copied when written to."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chip_core.models import base_models
from chip_core.models.base_models import MappedWeights

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux says what is mapped")
PAGE = 4096


class Model(nn.Module):
    """16 pages of weights, one of another shape, and one that is empty."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight, requires_grad=name != "bias"))


def make_weights() -> dict[str, torch.Tensor]:
    values = torch.arange(16 * PAGE // 4, dtype=torch.float32)
    return {"matrix": values.reshape(128, -1), "bias": values[:7].clone(), "none": values[:0]}


@pytest.fixture(params=["from a file", "in memory", "on another system"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    given = make_weights()
    if request.param == "from a file":
        save_file(given, tmp_path / "model.safetensors")
        given = load_file(tmp_path / "model.safetensors")
    if request.param == "on another system":
        monkeypatch.setattr(base_models, "_MAPS_FILE", tmp_path / "none")
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return Model(given)


def test_what_is_written_to_one_is_in_no_other(model: Model) -> None:
    kept = dict(model.named_parameters())
    lying = MappedWeights(model)
    first, second = lying.fresh_copies(kept), lying.fresh_copies(kept)
    for weight in first.values():
        weight.data.add_(1.0)
    for name, value in make_weights().items():
        assert torch.equal(first[name], value + 1)
        assert torch.equal(kept[name], value)
        assert torch.equal(second[name], value)
        assert torch.equal(lying.fresh_copies(kept)[name], value)
        assert first[name].requires_grad == (name != "bias")


def test_one_outlives_the_model_that_it_is_of(model: Model) -> None:
    lying = MappedWeights(model)
    again = lying.fresh_copies(dict(model.named_parameters()))
    del lying, model
    gc.collect()
    assert torch.equal(again["matrix"], make_weights()["matrix"])


def test_a_part_may_come_first(model: Model) -> None:
    kept = dict(model.named_parameters())
    lying = MappedWeights(model)
    lying.fresh_copies({"bias": kept["bias"]})["bias"].data.zero_()
    assert torch.equal(lying.fresh_copies(kept)["bias"], make_weights()["bias"])


@linux
def test_a_process_has_only_the_pages_that_it_wrote_to(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(make_weights(), file)
    model = Model(load_file(file))
    again = MappedWeights(model).fresh_copies(dict(model.named_parameters()))

    def own() -> int:
        maps = psutil.Process().memory_maps(grouped=False)
        return sum(each.anonymous for each in maps if each.path == str(file))

    assert again["matrix"].sum() == make_weights()["matrix"].sum()
    assert own() == 0
    again["matrix"].data[0, 0] = 5.0  # one number, of one page
    assert own() == PAGE


@linux
def test_memory_is_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    lying = MappedWeights(model := Model(make_weights()))
    again = lying.fresh_copies(dict(model.named_parameters()))
    assert len(os.listdir("/proc/self/fd")) > before
    del lying, again, model
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
