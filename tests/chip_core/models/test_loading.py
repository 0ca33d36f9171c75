"""What is wrong with a model is said before training, with what to do."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.evaluation.inference import generate
from chip_core.evaluation.task import Item, Picture
from chip_core.models import loading
from chip_core.models.adapters import attach_adapters
from chip_core.models.layers import keep_activations, recompute_layers
from chip_core.models.memory import check_memory, estimate_required_bytes
from chip_core.shapes import MODEL_FOLDER
from chip_core.utils.errors import TrialError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(MODEL_FOLDER, tmp_path / "model")


def no_folder(folder: Path) -> str:
    shutil.rmtree(folder)
    return "no folder .*: name a folder with a Hugging Face model, or a hub name"


def no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return r"no \*.safetensors in .*: convert the weights with save_pretrained"


def cut_weights(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return "model.safetensors cannot be read .*: copy the weights again"


def a_shard_is_missing(folder: Path) -> str:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "lacks model-2.safetensors: copy the folder again"


def no_vision_model(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return "model_type llama is not an image-text-to-text model .*: name a vision-language model"


def an_adapter(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "holds an adapter: name its base model, or export it with --merge"


def no_type(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": ["llava"]}))
    return "config.json names no model_type: not a Hugging Face model"


def no_json(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return r"config.json cannot be read \(.*: not a Hugging Face model"


def no_index(folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text("{}")
    return "lacks a readable model.safetensors.index.json: copy the folder again"


@pytest.mark.parametrize(
    "harm",
    [
        no_type,
        no_json,
        no_index,
        no_folder,
        no_weights,
        cut_weights,
        a_shard_is_missing,
        no_vision_model,
        an_adapter,
    ],
)
def test_a_broken_folder_is_told_when_planned_and_when_loaded(
    folder: Path, harm: Callable[[Path], str]
) -> None:
    assert loading.find_model_problem(ModelConfig(path=str(folder))) is None
    expected = harm(folder)
    model = ModelConfig(path=str(folder))
    with pytest.raises(TrialError, match=expected) as raised:
        loading.load(model)
    assert loading.find_model_problem(model) == str(raised.value)


def test_weights_that_are_not_there_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "multi_modal_projector" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrialError, match="lacks 1 of its weights .*projector.*: copy the weights"):
        loading.load(ModelConfig(path=str(folder)))


def no_template(folder: Path) -> str:
    (folder / "chat_template.jinja").unlink()
    return "has no chat template .*: add its chat_template.jinja to the folder"


def no_end(folder: Path) -> str:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return "its tokenizer has no end of sequence: set eos_token in tokenizer_config.json"


def no_processor(folder: Path) -> str:
    (folder / "processor_config.json").unlink()
    return "has no processor that can be built: .*; from its parts: "


@pytest.mark.parametrize("harm", [no_template, no_end, no_processor])
def test_what_a_prompt_needs_is_told(folder: Path, harm: Callable[[Path], str]) -> None:
    expected = harm(folder)
    with pytest.raises(TrialError, match=expected):
        loading.load(ModelConfig(path=str(folder)))


def test_a_tokenizer_without_padding_pads_with_the_end(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    picture = Picture(key="black", read=lambda: Image.new("RGB", (48, 48)))
    items = [
        Item(id=str(words), pictures=(picture,), prompt="What is there? " * words)
        for words in (1, 3)
    ]
    answers = []
    for path in (folder, MODEL_FOLDER):
        model, processor = loading.load(ModelConfig(path=str(path)))
        answers.append(generate(model, processor, items, max_new_tokens=4))
    assert processor.tokenizer.pad_token != processor.tokenizer.eos_token
    assert answers[0] == answers[1]


def test_weights_are_hashed_piece_by_piece(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    monkeypatch.setattr(Path, "read_bytes", None)  # a file of weights may not fit into memory
    assert loading.identity(ModelConfig(path=str(folder))) == {"content": digest.hexdigest()}
    assert loading.identity(ModelConfig(path="nobody/nothing", revision="v1")) == {
        "hub": "nobody/nothing", "revision": "v1"
    }  # fmt: skip


def test_a_hub_name_without_a_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = ModelConfig(path="nobody/nothing-at-all")
    assert loading.find_model_problem(model) is None  # planning needs nothing
    with pytest.raises(TrialError, match="nobody/nothing-at-all cannot be loaded .*: check the na"):
        loading.load(model)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_the_kind_of_attention_is_chosen(kind: str) -> None:
    model, _ = loading.load(ModelConfig(path="shapes"), attention=kind)
    assert model.config.text_config._attn_implementation == kind


def test_attention_that_is_not_installed_is_told() -> None:
    with pytest.raises(TrialError, match="cannot be loaded .*: choose engine.attention: sdpa"):
        loading.load(ModelConfig(path="shapes"), attention="flash_attention_2")


def test_layers_that_are_computed_again_drop_nothing_out() -> None:
    """A layer that is told that it trains would apply its own dropout."""

    class Layer(GradientCheckpointingLayer):
        dropout, activation_dropout, kept = 0.1, 0.2, 0.3

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.told = Layer(), []

        def activation_checkpointing_enable(self, **how: object) -> None:
            self.told.append(how)

        def activation_checkpointing_disable(self) -> None:
            self.told.append({})

    model = Model().eval()
    recompute_layers(model)
    assert model.told == [{"activation_checkpointing_kwargs": {"use_reentrant": False}}]
    assert model.layer.training
    assert (model.layer.dropout, model.layer.activation_dropout, model.layer.kept) == (0, 0, 0.3)
    keep_activations(model)
    assert not model.layer.training
    assert model.told[1:] == [{}]


def test_layers_of_an_older_transformers_are_computed_again_too() -> None:
    """Before its 5.23 the two methods have other names."""

    class Model(nn.Module):
        told: ClassVar[list[object]] = []

        def gradient_checkpointing_enable(self, **how: object) -> None:
            self.told.append(how)

        def gradient_checkpointing_disable(self) -> None:
            self.told.append({})

    model = Model()
    recompute_layers(model)
    keep_activations(model)
    assert model.told == [{"gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}]


@pytest.mark.parametrize("language_model", ["full", "lora"])
def test_computing_layers_again_asks_for_nothing_deprecated(
    shapes_config: Callable[..., TrialConfig], language_model: str
) -> None:
    config = shapes_config(language_model=language_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = attach_adapters(loading.load(config.model)[0], config)
        layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
        recompute_layers(model)
        assert layers and all(each.gradient_checkpointing for each in layers)
        keep_activations(model)
    assert not any(each.gradient_checkpointing for each in layers)


def test_room_is_counted(shapes_config: Callable[..., TrialConfig]) -> None:
    def needed(reference: bool = True, **changes: Any) -> int:
        config = shapes_config(**changes)
        model = attach_adapters(loading.load(config.model)[0], config)
        return estimate_required_bytes(model, config, reference=reference)

    model, _ = loading.load(ModelConfig(path="shapes"))
    total = sum(parameter.numel() for parameter in model.parameters())
    # weights, gradients, two moments and the reference's copy: 5 × 4 bytes
    assert needed(vision_encoder="trained") == 20 * total
    assert needed(reference=False, vision_encoder="trained") == 16 * total  # it is read
    assert needed() < needed(vision_encoder="trained")
    assert needed(language_model="lora", lora__rank=1) < 8 * total


def test_no_room_is_told_with_what_would_fit(shapes_config: Callable[..., TrialConfig]) -> None:
    check_memory(100, 100, shapes_config())
    with pytest.raises(TrialError) as raised:
        check_memory(3 * 2**30, 2**30, shapes_config(vision_encoder="trained"))
    assert str(raised.value) == (
        "not enough memory on the GPU: weights, gradients, optimizer and reference take 3.0 GiB, "
        "but only 1.0 GiB are free: choose language_model: lora, or vision_encoder: lora, or "
        "engine.workers_per_trial: 3 with engine.parallel: fsdp, or a GPU with more memory, or a "
        "smaller model"
    )
    hybrid = shapes_config(engine__parallel="hsdp", engine__workers_per_trial=4)
    with pytest.raises(TrialError, match="choose engine.parallel: fsdp, or a GPU with more"):
        check_memory(3 * 2**30, 2**30, hybrid.model_copy(update={"language_model": "lora"}))
