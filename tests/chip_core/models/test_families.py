"""Every family goes the one way: load, train, policy = reference at first, save, reload, answer.

Each test is a column of the table in docs/models.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from chip_core.config import ModelConfig, TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.evaluation.generation import generate
from chip_core.files import read_records
from chip_core.models import loading
from chip_core.models.adapters import attach, save_model
from chip_core.models.parts import named_parts, set_trained, trained_parts
from chip_core.training.loop import train
from chip_core.training.policy import Policy
from chip_core.training.reference import LiveReference

from .. import families
from ..plain import logits, objective, original_logits

PAIRS = families.pairs()


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family's model and processor as a Hugging Face folder."""
    path: Path = tmp_path_factory.mktemp(request.param)
    model, processor = families.build(request.param)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def configured(folder: Path) -> Callable[..., TrialConfig]:
    def made(**changes: Any) -> TrialConfig:
        tree = {
            "model": str(folder),
            "objective": {"weights": {"segment": 3.0}},
            "vision_encoder": "trained",
            "optimizer": {"lr": 1e-3, "warmup": 0},
            "training": {"batch_size": 3, "epochs": 2, "max_length": 256},
            "engine": {"micro_batch": 2, "threads": 1},
        }
        return TrialConfig.model_validate({**tree, **changes})

    return made


def test_a_padded_batch_gives_what_each_pair_gives_alone(
    configured: Callable[..., TrialConfig],
) -> None:
    config = configured()
    model, processor = loading.load(config.model)
    encoder = PairEncoder(processor, config, PAIRS)
    together = encoder.batch(range(3))
    for what in ("chosen", "rejected", "rejected_image"):
        whole = logits(model, together, what)
        for row in range(3):
            alone = logits(model, encoder.batch([row]), what)[0]
            assert torch.allclose(whole[row, : len(alone)], alone, atol=2e-5)


@pytest.mark.parametrize("language_model", ["full", "lora"])
def test_policy_is_reference_at_first_and_gradients_are_finite(
    configured: Callable[..., TrialConfig], language_model: str
) -> None:
    config = configured(language_model=language_model)
    model, processor = loading.load(config.model)
    model = attach(model, config)
    policy = Policy(model, config.objective)
    reference = LiveReference(policy, config)
    trained = set_trained(model, config)
    batch = PairEncoder(processor, config, PAIRS).batch(range(3))
    assert torch.equal(logits(model, batch), original_logits(reference, model, batch))
    result = objective(policy, reference, batch)
    # at policy = reference: (1 + 3 + 1) log 2, and no divergence
    assert result.loss.tolist() == pytest.approx([5 * math.log(2)] * 3, rel=1e-6)
    result.loss.mean().backward()
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    for part, parameters in trained_parts(model, config).items():
        moved = [p for p in parameters.values() if p.grad is not None and p.grad.any()]
        assert moved, f"{part} gets no gradient"


def test_it_trains_and_reloads_with_plain_transformers(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = configured()
    model, processor = loading.load(config.model)
    batch = PairEncoder(processor, config, PAIRS).batch(range(3))
    before = logits(model, batch)
    train(
        config, model=model, processor=processor, pairs=PAIRS, folder=tmp_path,
        on_step=lambda *_: None,
    )  # fmt: skip
    losses = [record["figures"]["loss"] for record in read_records(tmp_path / "curves.jsonl")]
    assert losses[0] == pytest.approx(5 * math.log(2), rel=1e-6)
    assert losses[1] < losses[0]
    save_model(model, processor, tmp_path / "model", config)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(logits(model, batch), logits(again.eval(), batch))
    assert not torch.equal(logits(model, batch), before)
    ours, processor = loading.load(config.model, trained=tmp_path / "model")
    batch = PairEncoder(processor, config, PAIRS).batch(range(3))  # the saved processor reads alike
    assert torch.equal(logits(model, batch), logits(ours, batch))


def test_bf16_trains(configured: Callable[..., TrialConfig], tmp_path: Path, folder: Path) -> None:
    config = configured(model={"path": str(folder), "dtype": "bf16"}, optimizer={"lr": 1e-4})
    model, processor = loading.load(config.model)
    train(
        config, model=model, processor=processor, pairs=PAIRS, folder=tmp_path,
        on_step=lambda *_: None,
    )  # fmt: skip
    records = [record["figures"] for record in read_records(tmp_path / "curves.jsonl")]
    # the same computation on both sides: exact also in bf16
    assert records[0]["loss"] == pytest.approx(5 * math.log(2), rel=1e-6)
    assert all(math.isfinite(figures["grad_norm"]) for figures in records)


def test_an_adapter_reloads_with_plain_transformers_and_peft(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = configured(language_model="lora", lora={"rank": 2})
    model, processor = loading.load(config.model)
    policy = attach(model, config)
    train(
        config, model=policy, processor=processor, pairs=PAIRS, folder=tmp_path,
        on_step=lambda *_: None,
    )  # fmt: skip
    save_model(policy, processor, tmp_path / "model", config)
    batch = PairEncoder(processor, config, PAIRS).batch(range(3))
    trained = logits(policy, batch)

    base = AutoModelForImageTextToText.from_pretrained(config.model.path, dtype=torch.float32)
    base.load_state_dict(load_file(tmp_path / "model/trained_parts.safetensors"), strict=False)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
    assert torch.equal(trained, logits(again, batch))

    ours, _ = loading.load(config.model, trained=tmp_path / "model")
    assert torch.equal(trained, logits(ours, batch))
    assert torch.allclose(trained, logits(ours.merge_and_unload(), batch), atol=1e-5)


def test_it_answers_in_a_batch_padded_on_the_left(folder: Path) -> None:
    model, processor = loading.load(ModelConfig(path=str(folder)))
    items = families.items()[::4]
    together = generate(model, processor, items, max_new_tokens=6)
    alone = [generate(model, processor, [item], max_new_tokens=6)[0] for item in items]
    assert together == alone
    assert any(together)


def test_the_parts_are_three_and_the_whole(folder: Path) -> None:
    model, _ = loading.load(ModelConfig(path=str(folder)))
    parts = named_parts(model)
    assert all(parts.values())
    names = sorted(name for part in parts.values() for name in part)
    assert names == sorted(name for name, _ in model.named_parameters())
    assert all("lm_head" not in name for name in parts["projector"])


def test_layers_computed_again_give_the_same_gradients(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    saved = []
    for again in (False, True):
        config = configured(engine={"threads": 1, "gradient_checkpointing": again})
        model, processor = loading.load(config.model)
        train(
            config, model=model, processor=processor, pairs=PAIRS, folder=tmp_path / str(again),
            on_step=lambda *_: None,
        )  # fmt: skip
        saved.append(model.state_dict())
    for name, value in saved[0].items():
        assert torch.equal(value, saved[1][name]), name
