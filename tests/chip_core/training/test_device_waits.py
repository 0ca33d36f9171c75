"""What a step makes a GPU wait for and cast, counted on a CPU."""

from __future__ import annotations

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data import tensors
from chip_core.data.batches import PairEncoder
from chip_core.data.tensors import PairBatch
from chip_core.models.adapters import attach_adapters
from chip_core.models.packing import use_packed_attention
from chip_core.models.parts import set_trained
from chip_core.models.precision import convert_weights
from chip_core.training.policy import LiveReference, Policy
from chip_core.training.trainer import _batch_figures

from .. import families
from ..wait_counter import WaitCounts, count_waits

DEVICE = torch.device("cpu")


def make_config(dtype: str, language_model: str) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "model": {"path": "x", "dtype": dtype},
            "language_model": language_model,
            "lora": {"rank": 2},
            "objective": {"weights": {"segment": 3.0, "token": 0.5}},
        }
    )


def count_waits_of_step(
    config: TrialConfig, monkeypatch: pytest.MonkeyPatch, *, live: bool, autocast: bool = False
) -> WaitCounts:
    """Count the waits of a micro-batch of three pairs: reference, forward, backward, figures."""
    model, processor = families.build("llava")
    if not autocast:
        convert_weights(model, config.model.dtype)
    model = attach_adapters(model, config)
    set_trained(model, config)
    policy = Policy(model, config.objective)
    encoded = PairEncoder(processor, config, families.make_pairs()).encode_batch(range(3))
    reference = LiveReference(policy, config)
    with use_packed_attention(model):
        policy.prefix_sharing = True
        stored = reference.scores(encoded.to(DEVICE))
        with (
            count_waits(model, monkeypatch) as counted,
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
        ):
            batch: PairBatch = encoded.to(DEVICE)
            said = reference.scores(batch) if live else stored
            result = policy(batch, said, reference.head)
            result.loss.sum().backward()
            _batch_figures(result, batch)
    return counted


@pytest.mark.parametrize("language_model", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("live", [False, True], ids=["stored", "live"])
def test_a_micro_batch_waits_for_no_device(
    monkeypatch: pytest.MonkeyPatch, dtype: str, language_model: str, live: bool
) -> None:
    """An update waits twice: for its figures, and for the gradient's norm."""
    counted = count_waits_of_step(make_config(dtype, language_model), monkeypatch, live=live)
    assert not counted.waits, counted.places


@pytest.mark.parametrize("language_model", ["full", "lora"])
@pytest.mark.parametrize("live", [False, True], ids=["stored", "live"])
def test_no_frozen_weight_is_cast_in_a_step(
    monkeypatch: pytest.MonkeyPatch, language_model: str, live: bool
) -> None:
    counted = count_waits_of_step(make_config("bf16", language_model), monkeypatch, live=live)
    assert not counted.frozen_casts


def test_the_count_sees_casts_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_waits_of_step(
        make_config("fp32", "lora"), monkeypatch, live=False, autocast=True
    )
    assert len(counted.frozen_casts) > 10


def test_the_count_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = families.build("llava")
    with count_waits(model, monkeypatch) as counted:
        here = torch.arange(6)
        assert here.tolist() and bool(here[1]) and int(here.sum()) == 15  # not of the device
        assert not counted.waits
        there = tensors.to_device(here, DEVICE) * 1
        there.tolist(), int(there.sum()), bool(there[1]), there[there > 2], there.nonzero()  # noqa: B018
        assert torch.equal(there, there)
    assert sum(counted.waits.values()) == 6, counted.places
