"""fp32 masters: what an update comes to, piece by piece or at once, against torch's own in fp32."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from chip_core.config.trial import TrialConfig
from chip_core.models.parts import set_trained
from chip_core.models.precision import convert_weights
from chip_core.training.optimizer import masters as module
from chip_core.training.optimizer.adamw import make_optimizer
from chip_core.training.optimizer.masters import MasterWeights
from chip_core.utils.workers import Workers

from ... import families

STEPS, LIMIT = 3, 0.5


def make_config(gradients: str, lr: float = 1e-3) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "model": {"path": "shapes", "dtype": "bf16"},
            "vision_encoder": "trained",
            "optimizer": {"lr": lr, "weight_decay": 0.1, "schedule": "constant", "warmup": 0},
            "training": {"gradients": gradients},
        }
    )


@pytest.fixture
def model() -> Any:
    return convert_weights(families.build("llava")[0], "bf16")


def draw_gradients(trained: list[nn.Parameter], step: int) -> list[torch.Tensor]:
    """Draw what a pass might leave; the last weight gets none, as before its stage begins."""
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(weight.shape, generator=draw).bfloat16() for weight in trained[:-1]]


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_an_update_is_adamws_on_weights_in_fp32(
    model: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 2**13)  # many pieces
    config = make_config(kind)
    trained = set_trained(model, config)
    masters = MasterWeights(model, config)
    optimizer, _ = make_optimizer(model, config, STEPS, masters)
    plain = [nn.Parameter(weight.detach().float()) for weight in trained]
    theirs = torch.optim.AdamW(plain, lr=1e-3, weight_decay=0.1)
    for step in range(STEPS):
        passes = [draw_gradients(trained, 2 * step), draw_gradients(trained, 2 * step + 1)]
        for made in passes:
            torch.autograd.backward(trained[:-1], made)
            # In bf16 beside the weights, or in fp32 beside the masters, never both.
            assert all((weight.grad is None) == (kind == "fp32") for weight in trained[:-1])
        for number, weight in enumerate(plain[:-1]):
            one, other = passes[0][number], passes[1][number]
            # Added up in fp32, or in bf16 as autograd does.
            weight.grad = one.float() + other.float() if kind == "fp32" else (one + other).float()
        norm = masters.norm(trained, sharded=False)
        assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(plain, LIMIT).item(), rel=1e-6)
        masters.update(trained, optimizer, norm, LIMIT)
        theirs.step()
        theirs.zero_grad()
        assert all(
            weight.grad is None and masters.master_of(weight).grad is None for weight in trained
        )
    for weight, expected in zip(trained, plain, strict=True):
        assert masters.master_of(weight).dtype == torch.float32
        # The norms are summed in another order.
        torch.testing.assert_close(
            masters.master_of(weight).detach(), expected.detach(), rtol=1e-6, atol=1e-7
        )
        assert torch.equal(weight, masters.master_of(weight).detach().bfloat16())
    # The last weight is passed over, its weight decay too.
    assert torch.equal(plain[-1], masters.master_of(trained[-1]))


def test_steps_too_small_for_bf16_add_up(model: Any) -> None:
    """At lr 5e-7 a weight of about 1 moves by 1/15,000 of its last bit, 2^-7 = 0.0078, a step."""
    config = make_config("fp32", lr=5e-7)
    trained = set_trained(model, config)
    weight = next(each for each in trained if each.ndim == 1 and bool((each == 1).all()))
    masters = MasterWeights(model, config)
    optimizer, _ = make_optimizer(model, config, STEPS, masters)
    for _ in range(STEPS):
        torch.autograd.backward([weight], [torch.ones_like(weight)])
        masters.update(trained, optimizer, masters.norm(trained, sharded=False), None)
    assert bool((weight == 1).all())  # as it is read
    # AdamW with a constant gradient moves by lr a step, and decays by lr × 0.1 of the weight.
    expected = 1 - STEPS * 5e-7 * (1 + 0.1)
    assert masters.master_of(weight).detach() == pytest.approx(expected, abs=2e-7)
    assert bool((masters.master_of(weight) < 1).all())


def test_one_worker_averages_nothing(model: Any) -> None:
    config = make_config("fp32")
    trained = set_trained(model, config)
    masters = MasterWeights(model, config)
    torch.autograd.backward(trained[:1], [torch.ones_like(trained[0])])
    masters.average(trained, Workers())
    assert bool((masters.master_of(trained[0]).grad == 1).all())


def test_what_is_not_trained_yet_is_not_updated(model: Any) -> None:
    """Under FSDP, a first stage's passes leave gradients of the others too."""
    config = make_config("fp32")
    trained = set_trained(model, config)
    masters = MasterWeights(model, config)
    optimizer, _ = make_optimizer(model, config, STEPS, masters)
    first, other = trained[:1], trained[1]
    torch.autograd.backward([first[0], other], [torch.ones_like(first[0]), torch.ones_like(other)])
    before = other.detach().clone()
    norm = masters.norm(first, sharded=False)
    assert norm.item() == pytest.approx(first[0].numel() ** 0.5)
    masters.drop_untrained(first)
    masters.update(first, optimizer, norm, None)
    assert torch.equal(other, before)
    assert torch.equal(masters.master_of(other).detach(), before.float())
    assert masters.master_of(other).grad is None


def test_weights_outlive_their_masters(model: Any) -> None:
    config = make_config("fp32")
    trained = set_trained(model, config)
    masters = MasterWeights(model, config)
    gone = weakref.ref(masters)
    masters.close()
    del masters
    gc.collect()
    assert gone() is None
    torch.autograd.backward(trained[:1], [torch.ones_like(trained[0])])
    assert trained[0].grad is not None


@pytest.mark.gpu
def test_on_a_gpu_one_kernel_updates_all_to_the_same_masters(model: Any) -> None:
    config = make_config("fp32")
    found = []
    for device in ("cpu", "cuda"):
        placed = copy.deepcopy(model).to(device)
        trained = set_trained(placed, config)
        masters = MasterWeights(placed, config)
        optimizer, _ = make_optimizer(placed, config, STEPS, masters)
        assert bool(optimizer.defaults["fused"]) == (device == "cuda")
        for step in range(STEPS):
            made = [gradient.to(device) for gradient in draw_gradients(trained, step)]
            torch.autograd.backward(trained[:-1], made)
            norm = masters.norm(trained, sharded=False)
            masters.update(trained, optimizer, norm, LIMIT)
        found.append([masters.master_of(weight).detach().cpu() for weight in trained])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
