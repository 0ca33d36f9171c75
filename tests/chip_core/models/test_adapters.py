"""Adapters, the reference, stages and rates, on the embedded world's model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from chip_core.config.trial import TrialConfig
from chip_core.data.batches import PairBatch, PairEncoder
from chip_core.data.preferences import load_pairs
from chip_core.models import loading
from chip_core.models.adapters import (
    attach_adapters,
    disable_adapter,
    find_decoder_linears,
    merge_adapters,
)
from chip_core.models.parts import find_tower_layers, group_parameters, set_trained
from chip_core.shapes import MODEL_FOLDER
from chip_core.training.optimizer.adamw import count_encoder_steps
from chip_core.training.policy import LiveReference, Policy
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError
from chip_core.utils.files import read_records

from ..naive_forward import compute_logits, compute_original_logits
from ..trainings import train

Configured = Callable[..., TrialConfig]
TRAINED = [
    {"language_model": "full"},
    {"language_model": "full", "vision_encoder": "trained"},
    {"language_model": "lora", "projector": "frozen"},  # the adapter alone
    {"language_model": "lora"},
    {"language_model": "lora", "vision_encoder": "trained"},
    {"language_model": "lora", "vision_encoder": "staged"},
    {"language_model": "frozen", "vision_encoder": "trained"},
    {"language_model": "lora", "vision_encoder": "lora", "projector": "lora"},
    {"language_model": "full", "vision_encoder": "lora"},
    {"language_model": "frozen", "vision_encoder": "lora", "projector": "frozen"},
]


def prepare_model(config: TrialConfig) -> tuple[Any, Any, PairBatch]:
    model, processor = loading.load(config.model)
    pairs = load_pairs(config.data)
    batch = PairEncoder(processor, config, pairs).encode_batch(range(4))
    return attach_adapters(model, config), processor, batch


@pytest.mark.parametrize("changes", TRAINED, ids=lambda c: "-".join(c.values()))
def test_the_reference_is_the_base_and_does_not_move(
    shapes_config: Configured, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = shapes_config(optimizer__lr=1e-3, **changes)
    policy, processor, batch = prepare_model(config)
    base, _ = loading.load(config.model)
    before = compute_logits(base, batch)
    reference = LiveReference(Policy(policy, config.objective), config)
    assert torch.equal(compute_logits(policy, batch), before)
    assert torch.equal(compute_original_logits(reference, policy, batch), before)
    train(
        config, model=policy, processor=processor, pairs=load_pairs(config.data),
        folder=tmp_path,
    )  # fmt: skip
    assert torch.equal(compute_original_logits(reference, policy, batch), before)
    assert not torch.equal(compute_logits(policy, batch), before)
    # and what is frozen has not moved
    originals = dict(base.named_parameters())
    model = policy.get_base_model() if config.has_adapters else policy
    for part, parameters in group_parameters(model).items():
        if getattr(config, part) in ("frozen", "lora"):
            for name, parameter in parameters.items():
                if ".lora_" not in name:
                    original = originals[name.replace(".base_layer", "")]
                    assert torch.equal(parameter, original), name


@pytest.mark.parametrize(
    "changes", [*TRAINED[3:6], *TRAINED[7:9]], ids=lambda c: "-".join(c.values())
)
def test_gradients_are_those_of_a_separate_reference(
    shapes_config: Configured, changes: dict[str, Any]
) -> None:
    config = shapes_config(**changes)
    policy, _, batch = prepare_model(config)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    base, _ = loading.load(config.model)
    gradients = []
    whole = Policy(policy, config.objective)
    live, separate = LiveReference(whole, config), Policy(base, config.objective)
    for scores, head in (
        (live.scores(batch), live.head),
        (separate.reference_scores(batch), separate.head),
    ):
        trained = set_trained(policy, config)
        policy.zero_grad()
        whole(batch, scores, head).loss.mean().backward()
        gradients.append([copy.deepcopy(parameter.grad) for parameter in trained])
    assert any(gradient is not None for gradient in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_adapters_are_on_the_decoder_alone(shapes_config: Configured) -> None:
    config = shapes_config(language_model="lora")
    model, _ = loading.load(config.model)
    names = find_decoder_linears(model, config.lora)
    assert len(names) == 4 * 7  # layers × (q k v o, gate up down)
    policy = attach_adapters(model, config)
    adapted = {name.split(".lora_")[0] for name, _ in policy.named_parameters() if ".lora_" in name}
    assert adapted == {f"base_model.model.{name}" for name in names}
    assert not any("vision" in name for name in adapted)


def test_targets_are_the_decoders_and_the_other_parts_have_them_on_all(
    shapes_config: Configured,
) -> None:
    given = {"vision_encoder": "lora", "projector": "lora", "lora": {"targets": ["q_proj"]}}
    config = shapes_config(language_model="lora", **given)
    policy = attach_adapters(loading.load(config.model)[0], config)
    adapted = {name.split(".lora_")[0] for name, _ in policy.named_parameters() if ".lora_" in name}
    names = [name.removeprefix("base_model.model.") for name in adapted]
    decoder = [name for name in names if "language_model" in name]
    assert len(decoder) == 4 and all(name.endswith("q_proj") for name in decoder)
    layers = {name.split(".layers.")[1][0] for name in names if "vision_tower" in name}
    whole = len(find_tower_layers(policy))
    assert layers == {str(number) for number in range(whole - 1)}  # the last is not read
    assert sum("vision_tower" in name for name in names) == 6 * (whole - 1)  # q k v out, fc1 fc2
    assert sum("projector" in name for name in names) == 2


def test_targets_are_chosen_by_their_last_name(shapes_config: Configured) -> None:
    config = shapes_config(language_model="lora", lora__targets=["q_proj", "v_proj"])
    model, _ = loading.load(config.model)  # the vision encoder has a q_proj too
    names = find_decoder_linears(model, config.lora)
    assert len(names) == 8
    assert all("language_model" in name for name in names)
    wrong = shapes_config(language_model="lora", lora__targets=["q_proj", "query"])
    with pytest.raises(TrialError, match=r"no linear layer query: choose from down_proj, gate_pr"):
        attach_adapters(model, wrong)


def test_the_adapters_first_values_are_the_seeds(shapes_config: Configured) -> None:
    def first(seed: int) -> torch.Tensor:
        config = shapes_config(language_model="lora", seed=seed)
        torch.manual_seed(123)  # whatever was drawn before
        policy = attach_adapters(loading.load(config.model)[0], config)
        return next(p for n, p in policy.named_parameters() if ".lora_A" in n).detach()

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


@pytest.mark.parametrize("changes", [TRAINED[3], TRAINED[7]], ids=lambda c: "-".join(c.values()))
def test_merged_answers_as_the_adapter_does(
    shapes_config: Configured, tmp_path: Path, changes: dict[str, Any]
) -> None:
    scored = {"report": [{"name": "shapes", "limit": 4}]}
    config = shapes_config(optimizer__lr=1e-3, benchmarks=scored, **changes)
    result = run_trial(config, folder=tmp_path)
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    told = [note for note in result.notes if "get" in note and "no adapter" in note]
    assert len(told) == ("vision_encoder" in changes)
    later = run_trial(config, folder=tmp_path / "later", trained_model=tmp_path / "model")
    assert later.metrics == result.metrics
    policy, _ = loading.load(config.model, trained=tmp_path / "model")
    batch = prepare_model(config)[2]
    adapted = compute_logits(policy, batch)
    assert torch.allclose(adapted, compute_logits(merge_adapters(policy), batch), atol=1e-4)


def test_staged_trains_the_encoder_alone_first(shapes_config: Configured, tmp_path: Path) -> None:
    config = shapes_config(
        vision_encoder="staged", staged__share=0.5, training__max_steps=4, optimizer__lr=1e-4,
        optimizer__schedule="constant",
    )  # fmt: skip
    moved: list[set[str]] = []
    policy, processor, _ = prepare_model(config)
    last = {name: value.clone() for name, value in policy.state_dict().items()}

    def look(step: int, *_: Any) -> None:
        parts = group_parameters(policy)
        moved.append(
            {
                part
                for part, parameters in parts.items()
                for name, value in parameters.items()
                if not torch.equal(last[name], value)
            }
        )
        last.update({name: value.clone() for name, value in policy.state_dict().items()})

    train(
        config, model=policy, processor=processor, pairs=load_pairs(config.data),
        folder=tmp_path, on_step=look,
    )  # fmt: skip
    everything = {"vision_encoder", "projector", "language_model"}
    assert moved == [{"vision_encoder"}] * 2 + [everything] * 2


@pytest.mark.parametrize(
    ("steps", "share", "alone"),
    [(10, 0.3, 3), (10, 0.01, 1), (10, 0.99, 9), (2, 0.3, 1), (1, 0.3, 0)],
)
def test_no_stage_is_left_out(
    shapes_config: Configured, steps: int, share: float, alone: int
) -> None:
    config = shapes_config(vision_encoder="staged", staged__share=share)
    assert count_encoder_steps(config, steps) == alone
    assert count_encoder_steps(shapes_config(staged__share=share), steps) == 0


def test_parts_have_their_own_learning_rates(shapes_config: Configured, tmp_path: Path) -> None:
    config = shapes_config(
        vision_encoder="trained", optimizer__lr=1e-4, optimizer__vision_lr=1e-6,
        optimizer__projector_lr=1e-3, optimizer__schedule="constant", training__max_steps=1,
    )  # fmt: skip
    run_trial(config, folder=tmp_path)
    figures = read_records(tmp_path / "curves.jsonl")[0]["figures"]
    rates = {name: value for name, value in figures.items() if name.startswith("lr")}
    assert rates == {"lr": 1e-4, "lr/vision_encoder": 1e-6, "lr/projector": 1e-3}
    before = load_file(MODEL_FOLDER / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    largest: dict[str, float] = {}
    for name in before:
        part = next((p for p in ("vision", "projector") if p in name), "language")
        step = (after[name].float() - before[name].float()).abs().max().item()
        largest[part] = max(largest.get(part, 0.0), step)
    # AdamW's first step is lr in size wherever the gradient is well above its epsilon
    assert largest["vision"] == pytest.approx(1e-6, rel=0.2)
    assert largest["language"] == pytest.approx(1e-4, rel=0.1)
    assert largest["projector"] == pytest.approx(1e-3, rel=0.1)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValidationError, match="nothing is trained"):
        TrialConfig(
            model="shapes", vision_encoder="frozen", projector="frozen", language_model="frozen"
        )


def test_an_adapter_that_is_off_keeps_its_marks(shapes_config: Configured) -> None:
    """PEFT takes them away, and FSDP notes at its first pass what is trained."""
    config = shapes_config(language_model="lora", lora={"rank": 2})
    policy = attach_adapters(loading.load(config.model)[0], config)
    set_trained(policy, config)
    before = {name: weight.requires_grad for name, weight in policy.named_parameters()}
    assert any(before.values())
    with disable_adapter(policy):
        assert {name: weight.requires_grad for name, weight in policy.named_parameters()} == before
    assert {name: weight.requires_grad for name, weight in policy.named_parameters()} == before
