"""Every family goes the one way: load, train, policy = reference at first, save, reload, answer.

Each test is a column of the table in docs/models.md.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.data.batches import PairEncoder
from chip_core.evaluation.inference import generate
from chip_core.evaluation.inference.encoder import Encoder
from chip_core.models import loading
from chip_core.models.adapters import attach_adapters, save_model, write_weights
from chip_core.models.loading import read_weights
from chip_core.models.parts import (
    describe_unread_modules,
    find_tower_layers,
    find_unread_modules,
    group_parameters,
    select_trained_parameters,
    set_trained,
)
from chip_core.representation.described import DescribedImage
from chip_core.representation.states import Reading, compute_representations
from chip_core.training.policy import LiveReference, Policy
from chip_core.utils.files import read_records

from .. import families
from ..naive_forward import compute_logits, compute_original_logits, compute_policy_objective
from ..trainings import train

PAIRS = families.make_pairs()
#: The second shows what the first came to.
TWO_STEPS = {"batch_size": 3, "epochs": 2, "max_length": 256}


EACH = [
    pytest.param(family, marks=pytest.mark.slow) if family in families.BY_HAND else family
    for family in sorted(families.FAMILIES)
]


@pytest.fixture(scope="module", params=EACH)
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
            "training": {**TWO_STEPS, "epochs": 1},
            "engine": {"micro_batch": 2, "threads": 1},
        }
        return TrialConfig.model_validate({**tree, **changes})

    return made


def reload_with_peft(config: TrialConfig, folder: Path) -> Any:
    """Load a trained folder with transformers and PEFT alone."""
    base = AutoModelForImageTextToText.from_pretrained(config.model.path, dtype=torch.float32)
    base.load_state_dict(load_file(folder / "trained_parts.safetensors"), strict=False)
    return peft.PeftModel.from_pretrained(base, folder).eval()


def test_a_model_without_weights_has_the_places_of_all(
    configured: Callable[..., TrialConfig],
) -> None:
    """What one worker loads has a place in the model of those that do not."""
    config = configured()
    loaded, _ = loading.load(config.model)
    empty, _ = loading.load_empty(config.model)

    def places(model: Any) -> dict[str, torch.Size]:
        named = [*model.named_parameters(), *model.named_buffers()]
        return {name: tensor.shape for name, tensor in named}

    assert places(empty) == places(loaded)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert not empty.training
    # What nothing reads is skipped in both.
    skipping = [
        {name for name, module in model.named_modules() if "forward" in vars(module)}
        for model in (loaded, empty)
    ]
    assert skipping[0] == skipping[1]


def test_a_padded_batch_gives_what_each_pair_gives_alone(
    configured: Callable[..., TrialConfig],
) -> None:
    config = configured()
    model, processor = loading.load(config.model)
    encoder = PairEncoder(processor, config, PAIRS)
    together = encoder.encode_batch(range(3))
    for what in ("chosen", "rejected", "rejected_image"):
        whole = compute_logits(model, together, what)
        for row in range(3):
            alone = compute_logits(model, encoder.encode_batch([row]), what)[0]
            assert torch.allclose(whole[row, : len(alone)], alone, atol=2e-5)


#: Adapters on every part: one PEFT folder, and nothing beside it.
EVERYWHERE = {"vision_encoder": "lora", "projector": "lora", "language_model": "lora"}


@pytest.mark.parametrize(
    "changes",
    [{}, {"language_model": "lora"}, EVERYWHERE, {**EVERYWHERE, "language_model": "full"}],
    ids=["full", "lora", "everywhere", "images"],
)
def test_policy_is_reference_at_first_and_gradients_are_finite(
    configured: Callable[..., TrialConfig], changes: dict[str, str]
) -> None:
    config = configured(**changes)
    model, processor = loading.load(config.model)
    model = attach_adapters(model, config)
    policy = Policy(model, config.objective)
    reference = LiveReference(policy, config)
    trained = set_trained(model, config)
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    assert torch.equal(
        compute_logits(model, batch), compute_original_logits(reference, model, batch)
    )
    result = compute_policy_objective(policy, reference, batch)
    # at policy = reference: (1 + 3 + 1) log 2, and no divergence
    assert result.loss.tolist() == pytest.approx([5 * math.log(2)] * 3, rel=1e-6)
    result.loss.mean().backward()
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    for part, parameters in select_trained_parameters(model, config).items():
        moved = [p for p in parameters.values() if p.grad is not None and p.grad.any()]
        assert moved, f"{part} gets no gradient"


def test_it_trains_and_reloads_with_plain_transformers(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = configured(training=TWO_STEPS)
    model, processor = loading.load(config.model)
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    before = compute_logits(model, batch)
    train(config, model=model, processor=processor, pairs=PAIRS, folder=tmp_path)
    losses = [record["figures"]["loss"] for record in read_records(tmp_path / "curves.jsonl")]
    assert losses[0] == pytest.approx(5 * math.log(2), rel=1e-6)
    assert losses[1] < losses[0]
    save_model(model, processor, tmp_path / "model", config)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(compute_logits(model, batch), compute_logits(again.eval(), batch))
    assert not torch.equal(compute_logits(model, batch), before)
    ours, processor = loading.load(config.model, trained=tmp_path / "model")
    # The saved processor encodes alike.
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    assert torch.equal(compute_logits(model, batch), compute_logits(ours, batch))


def test_bf16_trains(configured: Callable[..., TrialConfig], tmp_path: Path, folder: Path) -> None:
    config = configured(model={"path": str(folder), "dtype": "bf16"}, optimizer={"lr": 1e-4})
    model, processor = loading.load(config.model)
    train(config, model=model, processor=processor, pairs=PAIRS, folder=tmp_path)
    records = [record["figures"] for record in read_records(tmp_path / "curves.jsonl")]
    # the same computation on both sides: exact also in bf16
    assert records[0]["loss"] == pytest.approx(5 * math.log(2), rel=1e-6)
    assert all(math.isfinite(figures["grad_norm"]) for figures in records)


def test_an_adapter_reloads_with_plain_transformers_and_peft(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = configured(language_model="lora", lora={"rank": 2})
    model, processor = loading.load(config.model)
    policy = attach_adapters(model, config)
    train(config, model=policy, processor=processor, pairs=PAIRS, folder=tmp_path)
    save_model(policy, processor, tmp_path / "model", config)
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    trained = compute_logits(policy, batch)

    again = reload_with_peft(config, tmp_path / "model")
    assert torch.equal(trained, compute_logits(again, batch))

    ours, _ = loading.load(config.model, trained=tmp_path / "model")
    assert torch.equal(trained, compute_logits(ours, batch))
    assert torch.allclose(trained, compute_logits(ours.merge_and_unload(), batch), atol=1e-5)


def test_adapters_everywhere_are_one_folder_that_plain_peft_reads(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = configured(**EVERYWHERE, lora={"rank": 2})
    model, processor = loading.load(config.model)
    policy = attach_adapters(model, config)
    train(config, model=policy, processor=processor, pairs=PAIRS, folder=tmp_path)
    save_model(policy, processor, tmp_path / "model", config)
    assert not (tmp_path / "model/trained_parts.safetensors").exists()
    weights = load_file(tmp_path / "model/adapter_model.safetensors")
    moved = {name for name in weights if ".lora_B" in name and weights[name].any()}
    names = {name for part in select_trained_parameters(policy, config).values() for name in part}
    assert len(moved) == len([name for name in names if ".lora_B" in name])  # each of them moved
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    trained = compute_logits(policy, batch)

    base = AutoModelForImageTextToText.from_pretrained(config.model.path, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
    assert torch.equal(trained, compute_logits(again, batch))
    ours, _ = loading.load(config.model, trained=tmp_path / "model")
    assert torch.equal(trained, compute_logits(ours, batch))
    assert torch.allclose(trained, compute_logits(ours.merge_and_unload(), batch), atol=1e-5)
    fresh = attach_adapters(loading.load(config.model)[0], config)
    read_weights(fresh, tmp_path / "model")
    assert torch.equal(trained, compute_logits(fresh, batch))


def test_a_language_model_in_whole_lies_beside_adapters_of_images(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = configured(**{**EVERYWHERE, "language_model": "full"}, lora={"rank": 2})
    model, processor = loading.load(config.model)
    policy = attach_adapters(model, config)
    with torch.no_grad():
        for parameter in set_trained(policy, config):
            parameter.add_(0.01)
    save_model(policy, processor, tmp_path / "model", config)
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    trained = compute_logits(policy, batch)
    again = reload_with_peft(config, tmp_path / "model")
    assert torch.equal(trained, compute_logits(again, batch))
    ours, _ = loading.load(config.model, trained=tmp_path / "model")
    assert torch.equal(trained, compute_logits(ours, batch))


def test_what_of_the_tower_gets_no_gradient_is_known_before(
    configured: Callable[..., TrialConfig],
) -> None:
    config = configured()
    model, processor = loading.load(config.model)
    policy = Policy(model, config.objective)
    reference = LiveReference(policy, config)
    set_trained(model, config)
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    compute_policy_objective(policy, reference, batch).loss.mean().backward()
    layers = tuple(f"{name}." for name in find_tower_layers(model))
    still = {
        name
        for name, parameter in group_parameters(model)["vision_encoder"].items()
        if name.startswith(layers) and (parameter.grad is None or not parameter.grad.any())
    }
    unread = tuple(f"{name}." for name in find_unread_modules(model))
    assert still == {
        name for name in group_parameters(model)["vision_encoder"] if name.startswith(unread)
    }
    told = describe_unread_modules(model, config)
    assert (told is None) == (not unread)
    assert told is None or all(name[:-1] in told for name in unread)


def test_it_answers_in_a_batch_padded_on_the_left(folder: Path) -> None:
    model, processor = loading.load(ModelConfig(path=str(folder)))
    items = families.make_items()[::4]
    together = generate(model, processor, items, max_new_tokens=6)
    alone = [generate(model, processor, [item], max_new_tokens=6)[0] for item in items]
    assert together == alone
    assert any(together)


def test_the_parts_are_three_and_the_whole(folder: Path) -> None:
    model, _ = loading.load(ModelConfig(path=str(folder)))
    parts = group_parameters(model)
    assert all(parts.values())
    names = sorted(name for part in parts.values() for name in part)
    assert names == sorted(name for name, _ in model.named_parameters())
    assert all("lm_head" not in name for name in parts["projector"])


def test_layers_computed_again_give_the_same_gradients(
    configured: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    saved = []
    for again in (False, True):
        config = configured(
            engine={"threads": 1, "gradient_checkpointing": again}, training=TWO_STEPS
        )
        model, processor = loading.load(config.model)
        train(config, model=model, processor=processor, pairs=PAIRS, folder=tmp_path / str(again))
        saved.append(model.state_dict())
    for name, value in saved[0].items():
        assert torch.equal(value, saved[1][name]), name


def test_a_prompt_shows_its_picture_and_says_which_tokens_are_its(
    configured: Callable[..., TrialConfig], folder: Path
) -> None:
    """What training, asking and `represent` take of a processor.

    `apply_chat_template` gives text where it is not asked for ids, which come without the picture;
    and without `mm_token_type_ids` a Qwen-VL counts an image's tokens as words, one position each.
    """
    model, processor = loading.load(ModelConfig(path=str(folder)))
    batch = PairEncoder(processor, configured(), PAIRS).encode_batch(range(3))
    (asked,) = Encoder(processor).encode(families.make_items()[:1])
    described = DescribedImage(
        id="0", image=lambda: PAIRS[0].image, prompt=PAIRS[0].prompt, true="a dog",
        hallucinated="a cat",
    )  # fmt: skip
    shown = batch.prompts.ids == processor.image_token_id
    assert shown.any(1).all()
    assert "pixel_values" in batch.prompts.inputs and "pixel_values" in asked.pictures
    assert asked.vision_end > 0
    kinds = [name for name in batch.prompts.inputs if name.endswith("token_type_ids")]
    assert kinds == list(asked.token_types)
    if model.config.model_type not in ("qwen2_5_vl", "qwen3_vl"):
        return
    assert kinds == ["mm_token_type_ids"]
    assert torch.equal(batch.prompts.inputs["mm_token_type_ids"] == 1, shown)
    images = [token == processor.image_token_id for token in asked.ids]
    assert [kind == 1 for kind in asked.token_types["mm_token_type_ids"]] == images
    given: list[Any] = []
    model.register_forward_pre_hook(lambda _, __, inputs: given.append(inputs), with_kwargs=True)
    compute_representations(model, processor, [described], Reading())
    for inputs in given:
        marked = inputs["mm_token_type_ids"] == 1
        assert marked.any() and torch.equal(marked, inputs["input_ids"] == processor.image_token_id)
    # so every way says so; Qwen3-VL asks for it, and in Qwen2.5-VL it changes what is read
    if model.config.model_type == "qwen3_vl":
        return
    right = compute_logits(model, batch)
    del batch.prompts.inputs["mm_token_type_ids"]
    assert not torch.allclose(compute_logits(model, batch), right, atol=1e-4)


@pytest.mark.parametrize("folder", ["llava", "llava_next"], indirect=True)
@pytest.mark.parametrize("language_model", ["full", "lora"])
def test_a_base_named_as_before_is_trained_and_read_again(
    configured: Callable[..., TrialConfig], tmp_path: Path, folder: Path, language_model: str
) -> None:
    """transformers saves a LLaVA under the names that it was loaded with: its own of today or not.

    What was trained beside an adapter is named as in the model, whatever the base's file says.
    """
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    weights = load_file(old / "model.safetensors")
    named = {_name_before_4_52(name.removeprefix("model.")): weights[name] for name in weights}
    assert any(name.startswith("language_model.model.") for name in named)
    save_file(named, old / "model.safetensors", {"format": "pt"})

    config = configured(model=str(old), language_model=language_model)
    model, processor = loading.load(config.model)
    batch = PairEncoder(processor, config, PAIRS).encode_batch(range(3))
    assert torch.equal(
        compute_logits(model, batch),
        compute_logits(loading.load(ModelConfig(path=str(folder)))[0], batch),
    )
    policy = attach_adapters(model, config)
    with torch.no_grad():
        for parameter in set_trained(policy, config):
            parameter.add_(0.01)
    trained = compute_logits(policy, batch)
    write_weights(policy, tmp_path / "model", config)
    file = "model" if language_model == "full" else "trained_parts"
    with safe_open(tmp_path / "model" / f"{file}.safetensors", "pt") as written:
        names = set(written.keys())
    towers = {name for name in names if "vision_tower" in name}
    assert towers and all(
        name.startswith("model.") == (language_model == "lora") for name in towers
    )
    processor.save_pretrained(tmp_path / "model")
    again, _ = loading.load(config.model, trained=tmp_path / "model")
    assert torch.equal(trained, compute_logits(again, batch))
    fresh = attach_adapters(loading.load(config.model)[0], config)
    read_weights(fresh, tmp_path / "model")
    assert torch.equal(trained, compute_logits(fresh, batch))


def _name_before_4_52(name: str) -> str:
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return re.sub(r"^language_model\.(?!model\.|lm_head)", "language_model.model.", name)
