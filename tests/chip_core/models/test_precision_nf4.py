"""The language model in 4 bits: what is packed, what it computes, what of it stays as it was."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chip_core.config.identity import fingerprint, untrained_identity
from chip_core.config.trial import TrialConfig
from chip_core.evaluation.readiness import find_unmet_requirements
from chip_core.export import export_model
from chip_core.models import loading
from chip_core.models.base_models import BASE_MODELS
from chip_core.models.memory import estimate_required_bytes
from chip_core.models.precision import NF4_BYTES, compute_in_fp32
from chip_core.results import read_result
from chip_core.training.footprint.estimate import estimate_footprint
from chip_core.training.footprint.step import RowShape
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError

from .. import families

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def make_config(dtype: str = "fp32", **changes: Any) -> TrialConfig:
    tree = {
        "model": {"path": "shapes", "dtype": dtype, "quantize": "nf4"},
        "language_model": "lora",
        "lora": {"rank": 2},
        "optimizer": {"lr": 1e-3},
        "training": {"batch_size": 4},
        "data": {"limit": 8},
        "engine": {"device": "cpu"},
        "benchmarks": {"report": [{"name": "shapes", "limit": 6}]},
    }
    return TrialConfig.model_validate({**tree, **changes})


def load_model(dtype: str = "fp32", **changes: Any) -> Any:
    return loading.load(make_config(dtype, **changes).model)[0]


def make_inputs(model: Any) -> dict[str, Tensor]:
    ids = torch.arange(2, 30)[None] % model.config.text_config.vocab_size
    return {"input_ids": torch.where(ids == model.config.image_token_id, 2, ids)}


def unpack_model(model: Any) -> Any:
    """Return the model with each packed weight unpacked once, for torch's own layers."""
    from bitsandbytes.functional import dequantize_4bit

    plain = loading.load(make_config().model.model_copy(update={"quantize": "none"}))[0]
    layers = dict(model.named_modules())
    for name, layer in plain.named_modules():
        packed = getattr(layers[name], "weight", None)
        if isinstance(layer, nn.Linear) and hasattr(packed, "quant_state"):
            state = copy.copy(packed.quant_state)
            state.dtype = torch.float32  # of what is unpacked: bf16's rounding is not in it
            layer.weight.data = dequantize_4bit(packed.data, state)
    return plain


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_decoders_linear_layers_are_packed_and_no_others(dtype: str) -> None:
    model = load_model(dtype)
    packed = {n for n, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    layers = model.config.text_config.num_hidden_layers
    assert len(packed) == 7 * layers
    assert all(".language_model.layers." in name for name in packed)
    held = {p.dtype for n, p in model.named_parameters() if n.rpartition(".")[0] not in packed}
    assert held == {torch.float32 if dtype == "fp32" else torch.bfloat16}


@needs_bitsandbytes
def test_it_computes_what_its_unpacked_weights_do() -> None:
    model = load_model()
    with torch.no_grad():
        told, plain = (
            model(**make_inputs(model)).logits,
            unpack_model(model)(**make_inputs(model)).logits,
        )
    torch.testing.assert_close(told, plain, rtol=1e-5, atol=1e-5)


@needs_bitsandbytes
def test_a_pass_without_gradients_leaves_the_weights_as_they_are() -> None:
    model = load_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    embedded = (
        model.get_input_embeddings()(make_inputs(model)["input_ids"]).detach().requires_grad_()
    )
    first = model(inputs_embeds=embedded).logits
    with torch.no_grad():
        model(inputs_embeds=embedded)
    assert torch.equal(first, model(inputs_embeds=embedded).logits)
    after = model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@needs_bitsandbytes
def test_in_fp32_a_bf16_model_multiplies_what_it_unpacks_in_fp32() -> None:
    model = load_model("bf16")
    given, plain = make_inputs(model), unpack_model(model)
    for name, weight in plain.named_parameters():  # the others are as bf16 holds them
        if ".language_model.layers." not in name or "norm" in name:
            weight.data = weight.data.bfloat16().float()
    with torch.no_grad():
        rough = model(**given).logits.float()
        with compute_in_fp32(model):
            fine = model(**given).logits
        again = model(**given).logits.float()
        truth = plain(**given).logits
    assert torch.equal(rough, again)
    assert (fine - truth).norm() < 0.01 * (rough - truth).norm()


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_trial_is_trained_answers_and_is_merged_into_whole_weights(
    dtype: str, tmp_path: Path
) -> None:
    config = make_config(dtype)
    done = run_trial(config, folder=tmp_path / "trial")
    assert done.engine["prefix_sharing"] == "on"  # equal to separate passes: it checks
    assert "nf4" in done.engine["precision"]
    kept = tmp_path / "trial" / "model"
    names = {path.name for path in kept.iterdir()}
    assert "adapter_model.safetensors" in names
    assert sum(path.stat().st_size for path in kept.glob("*.safetensors")) < 4_000_000
    export_model(tmp_path / "trial", tmp_path / "merged", merge=True)
    merged = loading.load(config.model.model_copy(update={"path": str(tmp_path / "merged")}))[0]
    assert not hasattr(merged, "peft_config")


@needs_bitsandbytes
def test_a_warm_slots_second_trial_is_its_first_to_the_bit(tmp_path: Path) -> None:
    try:
        BASE_MODELS.enable()
        for folder in ("one", "two"):
            run_trial(make_config(), folder=tmp_path / folder)
    finally:
        BASE_MODELS.disable()
    one, two = (read_result(tmp_path / folder) for folder in ("one", "two"))
    assert one is not None and two is not None
    assert one.evaluations["report/shapes"].metrics == two.evaluations["report/shapes"].metrics
    weights = [
        (tmp_path / folder / "model/adapter_model.safetensors").read_bytes()
        for folder in ("one", "two")
    ]
    assert weights[0] == weights[1]


@needs_bitsandbytes
def test_memory_counts_two_weights_a_byte() -> None:
    whole = loading.load(make_config().model.model_copy(update={"quantize": "none"}))[0]
    model = load_model("bf16")
    frozen = make_config("bf16", projector="frozen")
    packed = sum(p.numel() for p in model.parameters() if p.dtype == torch.uint8)
    others = sum(p.numel() for p in whole.parameters()) - 2 * packed
    assert estimate_required_bytes(model, frozen) == packed + 2 * others


def test_the_estimate_counts_half_a_byte_and_scales() -> None:
    found = families.FAMILIES["llava"]()[0]
    shape = RowShape(image=4, text=5, chosen=6, rejected=7)
    whole = TrialConfig.model_validate(
        {"model": {"path": "x", "dtype": "bf16"}, "language_model": "lora"}
    )
    four = whole.model_copy(update={"model": whole.model.model_copy(update={"quantize": "nf4"})})
    sizes = [estimate_footprint(found, each, shape, stored=True) for each in (whole, four)]
    text = found.text_config
    attention = (
        2 * text.hidden_size * text.head_dim * (text.num_attention_heads + text.num_key_value_heads)
    )
    weights = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    assert NF4_BYTES == 0.5 + 1 / 64 + 1 / 4096  # 4 bits; 8 of each 64; 32 of each 256 of those
    assert sizes[0].weights - sizes[1].weights == round((2 - NF4_BYTES) * weights)
    largest = 2 * text.hidden_size * max(text.intermediate_size, text.hidden_size)
    assert sizes[1].activations - sizes[0].activations == largest  # one is unpacked at a time


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language_model": "full"}, "language_model is full: write language_model: lora"),
        ({"language_model": "frozen"}, "language_model is frozen: write language_model: lora"),
        ({"engine": {"parallel": "fsdp"}}, "engine.parallel: ddp"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_config(**changes)


def test_without_its_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    for module in ("chip_core.evaluation.readiness", "chip_core.models.precision"):
        monkeypatch.setattr(
            f"{module}.find_spec", lambda name: None if name == "bitsandbytes" else find(name)
        )
    (line,) = find_unmet_requirements(make_config())
    assert "pip install 'chip-ablate[nf4]'" in line and "\n" not in line
    with pytest.raises(TrialError, match="bitsandbytes is not installed here"):
        loading.load(make_config().model)


def test_it_is_another_model_and_none_is_the_model_of_before() -> None:
    four = make_config().model
    none = four.model_copy(update={"quantize": "none"})
    content = {"content": "0" * 64}
    assert "quantize" not in untrained_identity(none, content)["model"]
    assert fingerprint(untrained_identity(four, content)) != fingerprint(
        untrained_identity(copy.deepcopy(none), content)
    )
