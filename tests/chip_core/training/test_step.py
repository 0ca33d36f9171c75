"""The batched step against the plain truth: each response alone, whole logits, float64."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairEncoder, iter_batch_indices
from chip_core.data.preferences import load_pairs
from chip_core.models import loading
from chip_core.models.parts import group_parameters, set_trained
from chip_core.training.policy import Policy

from ..naive_forward import compute_naive_loss


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    model, processor = loading.load(TrialConfig(model="shapes").model)
    return model.double(), processor


def make_moved_model(model: Any) -> Any:
    """Return a copy whose weights differ a little, so that no margin is 0."""
    policy = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
            parameter += 0.02 * parameter.std().nan_to_num() * noise
    return policy


OWN_TERM = """
def held(chosen, rejected, rejected_image, beta):
    return beta * (chosen.divergence() + rejected.divergence() - rejected_image.log_ratio())

held.needs = {"divergence", "rejected_image"}
"""


@pytest.fixture
def own_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An objective with a term that moves the chosen response's divergence too."""
    (tmp_path / "term_that_holds.py").write_text(OWN_TERM)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {"preset": "dpo", "custom": {"term_that_holds:held": 0.7}}
    sys.modules.pop("term_that_holds", None)


def test_a_custom_terms_needs_are_met(
    base: tuple[Any, Any], shapes_config: Callable[..., TrialConfig], own_term: dict[str, Any]
) -> None:
    test_loss_and_gradients_equal_the_plain_ones(base, shapes_config, own_term)


@pytest.mark.parametrize("objective", ["dpo", "cmdpo", "chip"])
def test_loss_and_gradients_equal_the_plain_ones(
    base: tuple[Any, Any], shapes_config: Callable[..., TrialConfig], objective: Any
) -> None:
    reference, processor = base
    config = shapes_config(objective=objective, vision_encoder="trained")
    pairs = load_pairs(config.data)
    batch = PairEncoder(processor, config, pairs).encode_batch(range(4))
    assert len(set(batch.chosen.mask.sum(-1).tolist())) > 1  # there is padding
    eos = processor.tokenizer.eos_token_id
    gradients = []
    losses = []
    known = Policy(reference, config.objective).reference_scores(batch)
    head = Policy(reference, config.objective).head
    for how in (lambda p: Policy(p, config.objective)(batch, known, head).loss.mean(),
                lambda p: compute_naive_loss(p, reference, batch, config, eos)):  # fmt: skip
        policy = make_moved_model(reference)
        trained = set_trained(policy, config)
        loss = how(policy)
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in trained])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    difference = square = 0.0
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            difference += float((one - other).square().sum())
            square += float(other.square().sum())
    assert difference <= 1e-20 * square  # 1e-10 of the global norm


def test_the_end_of_sequence_is_scored_and_never_changed(
    base: tuple[Any, Any], shapes_config: Callable[..., TrialConfig]
) -> None:
    _, processor = base
    config = shapes_config()
    pairs = load_pairs(config.data)
    batch = PairEncoder(processor, config, pairs).encode_batch(range(8))
    for part in (batch.chosen, batch.rejected):
        for row in range(8):
            last = int(part.mask[row].sum()) - 1
            assert part.ids[row, last] == processor.tokenizer.eos_token_id
            assert not part.changed[row, last]
            assert not (part.changed[row] & ~part.mask[row]).any()
    assert batch.chosen.changed.any(-1).float().mean() > 0.5


def test_text_only_objectives_make_no_rejected_image(
    base: tuple[Any, Any], shapes_config: Callable[..., TrialConfig]
) -> None:
    config = shapes_config(objective="hdpo")
    pairs = load_pairs(config.data)
    assert PairEncoder(base[1], config, pairs).encode_batch([0]).rejected_image is None


def test_parts_are_the_whole_and_do_not_overlap(base: tuple[Any, Any]) -> None:
    parts = group_parameters(base[0])
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in base[0].named_parameters())
    assert all("vision_tower" in name for name in parts["vision_encoder"])
    assert all("projector" in name for name in parts["projector"])
    assert any("lm_head" in name or "embed_tokens" in name for name in parts["language_model"])


def test_order_is_a_function_of_seed_and_epoch() -> None:
    one = list(iter_batch_indices(10, batch_size=4, epochs=2, seed=0))
    assert one == list(iter_batch_indices(10, batch_size=4, epochs=2, seed=0))
    assert one != list(iter_batch_indices(10, batch_size=4, epochs=2, seed=1))
    assert [len(indices) for indices in one] == [4, 4, 4, 4]
    assert len({*one[0], *one[1]}) == 8  # no pair twice in an epoch
    assert one[:2] != one[2:]
