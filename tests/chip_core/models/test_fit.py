"""An adapter is put where it belongs, to the bit, or refused: it never leaves the base as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from chip_core.models import loading
from chip_core.models.adapters import ADAPTER_WEIGHTS, TRAINED_PARTS, load_adapter
from chip_core.models.fit import find_layout
from chip_core.utils.errors import TrialError, UnfitError

from .. import families

Written = Callable[[str], str]

WITHIN = "base_model.model."
FAMILIES = ("llava", "qwen2_5_vl", "idefics3")


def rename_within_prefix(change: Written) -> Written:
    """Change what follows PEFT's prefix."""
    return lambda name: WITHIN + change(name.removeprefix(WITHIN))


def name_old_llava(name: str) -> str:
    """Return the name before transformers 4.52: the decoder was a model within the model."""
    for now, then in (
        ("model.language_model.", "language_model.model."),
        ("lm_head", "language_model.lm_head"),
        ("model.", ""),
    ):
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def name_old_qwen(name: str) -> str:
    """Return the name before transformers 4.52: the model was the decoder, without the tower."""
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)


def name_vision_model(name: str) -> str:
    """Return the name in transformers that keeps CLIP's layers in a `vision_model`."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


WRAPPED: dict[str, Written] = {
    "ddp": lambda name: f"module.{name}",
    "ddp, then PEFT": rename_within_prefix(lambda name: f"module.{name}"),
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, then PEFT": rename_within_prefix(lambda name: f"_orig_mod.{name}"),
    "both": lambda name: f"module._orig_mod.{name}",
    "fsdp": lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers."),
    "recomputed": lambda name: re.sub(r"(layers\.\d+)", r"\1._checkpoint_wrapped_module", name),
    "no prefix": lambda name: name.removeprefix(WITHIN),
    "half a prefix": lambda name: name.removeprefix("base_model."),
    "two prefixes": lambda name: WITHIN + name,
    "a trainer's own": lambda name: f"policy.{name}",
    "default": lambda name: name.replace(".weight", ".default.weight"),
    "another adapter": lambda name: name.replace(".weight", ".dpo.weight"),
}
OLDER: dict[str, dict[str, Written]] = {
    "llava": {
        "before 4.52": name_old_llava,
        "a vision_model": name_vision_model,
        "before 4.52, a vision_model": lambda name: name_old_llava(name_vision_model(name)),
        "before 4.52, ddp": lambda name: f"module.{name_old_llava(name)}",
    },
    "qwen2_5_vl": {
        "before 4.52": name_old_qwen,
        "before 4.52, compiled": lambda name: f"_orig_mod.{name_old_qwen(name)}",
    },
    "idefics3": {},
}


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and adapters of theirs: of some layers by their last names, of every one by all."""
    made = tmp_path_factory.mktemp("kept")
    for family in FAMILIES:
        model, processor = families.build(family)
        model.save_pretrained(made / family)
        processor.save_pretrained(made / family)
        every = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        ]
        write_adapter(
            made / family, made / family / "some", target_modules=["q_proj", "v_proj", "lm_head"]
        )
        write_adapter(made / family, made / family / "every", target_modules=every)
    return made


def load_base(folder: Path) -> Any:
    return loading.load_complete(str(folder)).eval()


def write_adapter(model: Path, into: Path, **settings: Any) -> None:
    """Write an adapter whose every weight was drawn."""
    adapted = peft.get_peft_model(load_base(model), peft.LoraConfig(r=2, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    adapted.save_pretrained(into, save_embedding_layers=False)


def copy_with_weights(
    adapter: Path, into: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Path:
    """Copy an adapter with its weights changed."""
    shutil.copytree(adapter, into)
    weights = change(load_file(adapter / ADAPTER_WEIGHTS))
    save_file(weights, into / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return into


def copy_with_names(adapter: Path, into: Path, written: Written) -> Path:
    """Copy an adapter with its weights named otherwise."""
    return copy_with_weights(
        adapter, into, lambda weights: {written(name): weights[name] for name in weights}
    )


def get_adapter_weights(model: Any) -> dict[str, Tensor]:
    """Return an adapter as it lies in a model."""
    found: dict[str, Tensor] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def check_same(model: Any, intact: Any) -> None:
    """Check that two models hold one adapter and answer alike, to the bit, and not as the base."""
    one, other = get_adapter_weights(model), get_adapter_weights(intact)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        answers = model(input_ids=ids).logits
        assert torch.equal(answers, intact(input_ids=ids).logits)
        with model.disable_adapter():
            assert not torch.allclose(answers, model(input_ids=ids).logits, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_read_as_peft_reads_it(saved_models: Path, family: str) -> None:
    for kind in ("some", "every"):
        plain = peft.PeftModel.from_pretrained(
            load_base(saved_models / family), saved_models / family / kind
        ).eval()
        check_same(
            load_adapter(load_base(saved_models / family), saved_models / family / kind), plain
        )


@pytest.mark.parametrize("how", WRAPPED)
def test_what_wrappers_added_to_names_is_taken_away(
    saved_models: Path, tmp_path: Path, how: str
) -> None:
    for family in FAMILIES:
        intact = load_adapter(load_base(saved_models / family), saved_models / family / "some")
        other = copy_with_names(saved_models / family / "some", tmp_path / family, WRAPPED[how])
        check_same(load_adapter(load_base(saved_models / family), other), intact)


@pytest.mark.parametrize(
    ("family", "how"), [(family, how) for family in OLDER for how in OLDER[family]]
)
def test_an_older_layouts_names_are_known(
    saved_models: Path, tmp_path: Path, family: str, how: str
) -> None:
    written = rename_within_prefix(OLDER[family][how])
    for kind in ("some", "every"):
        intact = load_adapter(load_base(saved_models / family), saved_models / family / kind)
        other = copy_with_names(saved_models / family / kind, tmp_path / kind, written)
        check_same(load_adapter(load_base(saved_models / family), other), intact)


VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "whole modules": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "multi_modal_projector"],
    },
    "biases": {"target_modules": ["fc1", "q_proj"], "bias": "all"},
    "its own biases": {"target_modules": ["fc1", "q_proj"], "bias": "lora_only"},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
    "ranks": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"model.language_model.layers.0.self_attn.q_proj": 3},
        "alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 32},
    },
    "one layer": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
    },
    "all but": {"target_modules": ["q_proj"], "exclude_modules": r"model\.vision_tower.*"},
    "a pattern": {"target_modules": r"model\.language_model.*\.(q|v)_proj"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_adapter_is_read_in_an_older_layout_too(
    saved_models: Path, tmp_path: Path, variant: str
) -> None:
    write_adapter(saved_models / "llava", tmp_path / "new", **VARIANTS[variant])
    intact = peft.PeftModel.from_pretrained(
        load_base(saved_models / "llava"), tmp_path / "new"
    ).eval()
    check_same(load_adapter(load_base(saved_models / "llava"), tmp_path / "new"), intact)
    old = copy_with_names(tmp_path / "new", tmp_path / "old", rename_within_prefix(name_old_llava))
    file = old / loading.ADAPTER_CONFIG
    said = file.read_text().replace(r"model\\.language_model", r"language_model\\.model")
    said = said.replace(r"model\\.vision_tower", "vision_tower")
    file.write_text(said.replace("model.language_model.", "language_model.model."))
    check_same(load_adapter(load_base(saved_models / "llava"), old), intact)
    # and as a model with its adapter's name writes its own state
    raw = copy_with_weights(
        tmp_path / "new",
        tmp_path / "raw",
        lambda weights: {
            name: value.contiguous()
            for name, value in intact.state_dict().items()
            if _to_saved_name(name, intact) in weights
        },
    )
    check_same(load_adapter(load_base(saved_models / "llava"), raw), intact)


def _to_saved_name(name: str, model: Any) -> str:
    """Return what PEFT saves a name of a model's state as."""
    name = name.replace(".modules_to_save.default", "")
    plain = name.replace(".default", "")
    return plain.removesuffix(".weight") if "lora_magnitude_vector" in plain else plain


def test_settings_that_name_whole_layers_of_an_older_layout_are_read(
    saved_models: Path, tmp_path: Path
) -> None:
    """As this package's own adapters do, and as LLaMA-Factory's and ms-swift's patterns do."""
    model = saved_models / "qwen2_5_vl"
    layers = [f"model.language_model.layers.{n}.self_attn.o_proj" for n in (0, 1)]
    write_adapter(model, tmp_path / "new", target_modules=layers)
    intact = load_adapter(load_base(model), tmp_path / "new")
    for number, targets in enumerate(
        (
            ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"],
            # on today's names it would match the vision tower's `proj` as well
            r"^(model)(?!.*(lm_head|visual)).*\.o_proj$",
            r"^(?!.*visual).*(?:o_proj)$",
        )
    ):
        old = copy_with_names(
            tmp_path / "new", tmp_path / str(number), rename_within_prefix(name_old_qwen)
        )
        said = json.loads((old / loading.ADAPTER_CONFIG).read_text())
        said["target_modules"] = targets
        (old / loading.ADAPTER_CONFIG).write_text(json.dumps(said))
        check_same(load_adapter(load_base(model), old), intact)


def test_settings_and_weights_may_be_of_different_times(saved_models: Path, tmp_path: Path) -> None:
    """Who renames an adapter by hand renames one of its two files."""
    model = saved_models / "qwen2_5_vl"
    chosen = {
        True: r"model\.language_model\.layers\..*\.o_proj",
        False: r"model\.layers\..*\.o_proj",
    }
    write_adapter(model, tmp_path / "new", target_modules=chosen[True])
    intact = load_adapter(load_base(model), tmp_path / "new")
    for weights_now in (True, False):
        written = (lambda name: name) if weights_now else rename_within_prefix(name_old_qwen)
        mixed = copy_with_names(tmp_path / "new", tmp_path / f"{weights_now}", written)
        said = json.loads((mixed / loading.ADAPTER_CONFIG).read_text())
        said["target_modules"] = chosen[not weights_now]
        (mixed / loading.ADAPTER_CONFIG).write_text(json.dumps(said))
        check_same(load_adapter(load_base(model), mixed), intact)


def test_a_pattern_chooses_by_the_names_of_its_time(saved_models: Path, tmp_path: Path) -> None:
    """`^model` was the decoder alone before 4.52 and is everything since."""
    model = saved_models / "qwen2_5_vl"
    write_adapter(model, tmp_path / "new", target_modules=r"model\.language_model\..*\.up_proj")
    old = copy_with_names(tmp_path / "new", tmp_path / "old", rename_within_prefix(name_old_qwen))
    said = json.loads((old / loading.ADAPTER_CONFIG).read_text())
    said["target_modules"] = r"^model\..*\.up_proj"
    (old / loading.ADAPTER_CONFIG).write_text(json.dumps(said))
    check_same(
        load_adapter(load_base(model), old), load_adapter(load_base(model), tmp_path / "new")
    )


def drop_weights(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: weights[name] for name in weights if part not in name}


# `some` of llava adapts q_proj and v_proj of 2 decoder and 3 tower layers, and the head:
# 4 + 6 + 1 = 11 layers, 22 weights.
BAD: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "another model's names": (
        lambda weights: {f"{WITHIN}encoder.{n}.weight": v for n, v in enumerate(weights.values())},
        r"22 of its 22 weights do not exist in it \(base_model.model.encoder.0.weight, .*, …\); "
        r"11 of the 11 layers that it adapts get none, or not all of theirs \(.*\): "
        r"name the model that it was trained from \(evaluate: --base\)$",
    ),
    "a layer is missing": (
        drop_weights("language_model.layers.1.self_attn.v_proj"),
        r"llava: 1 of the 11 layers that it adapts get none, or not all of theirs "
        r"\(model.language_model.layers.1.self_attn.v_proj\): it is incomplete: copy or save it",
    ),
    "half of it is missing": (drop_weights("language_model"), r"llava: 4 of the 11 layers that it"),
    "a lora_B is missing": (
        drop_weights("layers.0.self_attn.q_proj.lora_B"),  # of the decoder and of the tower
        r"llava: 2 of the 11 layers that it adapts get none, or not all of theirs",
    ),
    "one more": (
        lambda weights: {**weights, f"{WITHIN}model.extra.lora_A.weight": torch.ones(2, 32)},
        r"llava: 1 of its 23 weights do not exist in it \(base_model.model.model.extra.lora_A",
    ),
    "two adapters": (
        lambda weights: {
            name.replace(".weight", f".{which}.weight"): weights[name].clone()
            for name in weights
            for which in ("default", "reference")
        },
        r"llava: 22 of its 44 weights do not exist in it",
    ),
    "another size": (
        lambda weights: {
            name: torch.ones(2, 64) if "lm_head.lora_A" in name else weights[name]
            for name in weights
        },
        r"llava: 1 have another shape \(base_model.model.lm_head.lora_A.weight is 2×64, "
        r"in the model 2×32\): name the model",
    ),
    "one number for many": (  # torch would spread it over all
        lambda weights: {
            name: torch.ones(1) if "lm_head.lora_A" in name else weights[name] for name in weights
        },
        r"1 have another shape \(base_model.model.lm_head.lora_A.weight is 1, in the model 2×32",
    ),
    "no numbers": (
        lambda weights: {
            name: torch.full_like(weights[name], torch.nan) if "lm_head" in name else weights[name]
            for name in weights
        },
        r"2 of its weights are not finite \(base_model.model.lm_head.lora_A.weight, .*\): the "
        r"program that wrote them had failed; use an earlier file$",
    ),
    "endless numbers": (
        lambda weights: {name: weights[name] / ("B.w" not in name) for name in weights},
        r"11 of its weights are not finite",
    ),
    "nothing": (lambda weights: {}, r"11 of the 11 layers that it adapts get none"),
}


@pytest.mark.parametrize("how", BAD)
def test_what_does_not_fit_is_refused_in_a_line(
    saved_models: Path, tmp_path: Path, how: str
) -> None:
    change, said = BAD[how]
    adapter = copy_with_weights(saved_models / "llava" / "some", tmp_path / "bad", change)
    with pytest.raises(UnfitError, match=said) as raised:
        load_adapter(load_base(saved_models / "llava"), adapter)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(adapter / ADAPTER_WEIGHTS))


def test_another_families_adapter_is_refused(saved_models: Path, tmp_path: Path) -> None:
    for model in FAMILIES:
        for other in FAMILIES:
            if other != model:
                with pytest.raises(
                    UnfitError, match=r"says that it adapts a \w+, but .*: name the"
                ):
                    load_adapter(load_base(saved_models / model), saved_models / other / "some")
    # where its settings do not say whose it is, its names do
    for model, other in (("idefics3", "llava"), ("llava", "idefics3"), ("qwen2_5_vl", "idefics3")):
        adapter = tmp_path / model
        shutil.copytree(saved_models / other / "every", adapter)
        said = json.loads((adapter / loading.ADAPTER_CONFIG).read_text())
        (adapter / loading.ADAPTER_CONFIG).write_text(json.dumps({**said, "auto_mapping": None}))
        with pytest.raises(UnfitError, match=r"of its \d+ weights do not exist in it .*--base\)$"):
            load_adapter(load_base(saved_models / model), adapter)


def test_a_target_that_matches_nothing_beside_one_that_does_is_no_weight_left_out(
    saved_models: Path, tmp_path: Path
) -> None:
    """PEFT takes such settings without a word: the file's weights decide."""
    model = saved_models / "llava"
    write_adapter(model, tmp_path / "fine", target_modules=["q_proj", "nosuch"])
    check_same(
        load_adapter(load_base(model), tmp_path / "fine"),
        peft.PeftModel.from_pretrained(load_base(model), tmp_path / "fine").eval(),
    )
    more = {
        f"{WITHIN}model.language_model.layers.{n}.self_attn.nosuch.lora_A.weight": torch.ones(2, 32)
        for n in (0, 1)
    }
    adapter = copy_with_weights(
        tmp_path / "fine", tmp_path / "bad", lambda weights: {**weights, **more}
    )
    with pytest.raises(UnfitError, match=r"2 of its 12 weights do not exist in it .*nosuch"):
        load_adapter(load_base(model), adapter)
    said = json.loads((adapter / loading.ADAPTER_CONFIG).read_text())
    (adapter / loading.ADAPTER_CONFIG).write_text(json.dumps({**said, "target_modules": ["none"]}))
    with pytest.raises(UnfitError, match=r"2 of its 12 weights do not .*; PEFT: Target modules"):
        load_adapter(load_base(model), adapter)


def test_what_cannot_be_read_is_told(saved_models: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(saved_models / "llava" / "some", adapter)
    (adapter / ADAPTER_WEIGHTS).write_bytes(b"\x00" * 64)
    with pytest.raises(TrialError, match=r"adapter_model.safetensors cannot be read \(.*\): copy"):
        load_adapter(load_base(saved_models / "llava"), adapter)
    for broken in ("{", "[]", "{}", '{"peft_type": "NOSUCH"}'):
        (adapter / loading.ADAPTER_CONFIG).write_text(broken)
        with pytest.raises(TrialError, match=r"adapter_config.json cannot be read \(.*\): save"):
            load_adapter(load_base(saved_models / "llava"), adapter)
    shutil.copy(saved_models / "llava" / "some" / ADAPTER_WEIGHTS, adapter)
    said = json.loads((saved_models / "llava" / "some" / loading.ADAPTER_CONFIG).read_text())
    for key, value in (("r", 0), ("r", "two"), ("target_modules", 7), ("target_modules", "([")):
        (adapter / loading.ADAPTER_CONFIG).write_text(json.dumps({**said, key: value}))
        with pytest.raises(TrialError, match=r"adapter_config.json cannot be used \(.*\): save"):
            load_adapter(load_base(saved_models / "llava"), adapter)


def test_an_adapter_that_changes_nothing_is_read_and_told(
    saved_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = copy_with_weights(
        saved_models / "llava" / "some",
        tmp_path / "fresh",
        lambda weights: {name: weights[name] * ("lora_B" not in name) for name in weights},
    )
    model = load_base(saved_models / "llava")
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        assert torch.equal(load_adapter(model, adapter)(input_ids=ids).logits, before)
    assert "every lora_B is zero, as before training: it changes nothing" in caplog.text
    caplog.clear()
    load_adapter(load_base(saved_models / "llava"), saved_models / "llava" / "some")
    assert not caplog.text


def test_whole_modules_beside_an_adapter_are_in_fp32(saved_models: Path, tmp_path: Path) -> None:
    """PEFT makes the low-rank weights fp32 and leaves whole modules as the base is, which is fp32.

    So of an adapter written in bf16 no module computes in bf16.
    """
    write_adapter(
        saved_models / "llava",
        tmp_path / "adapter",
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
    )
    half = copy_with_weights(
        tmp_path / "adapter",
        tmp_path / "half",
        lambda weights: {name: weights[name].bfloat16() for name in weights},
    )
    model = load_adapter(load_base(saved_models / "llava"), half)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = load_file(half / ADAPTER_WEIGHTS)
    assert all(
        torch.equal(value, stored[name].float())
        for name, value in get_adapter_weights(model).items()
    )


def load_with_trained_parts(
    saved_models: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> Any:
    """Return llava with an adapter and with its projector and tower, trained beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved_models / "llava" / "some", folder)
    weights = {
        name: value + 1
        for name, value in load_base(saved_models / "llava").named_parameters()
        if "language_model" not in name and "lm_head" not in name
    }
    save_file(
        {name: value.detach() for name, value in change(weights).items()}, folder / TRAINED_PARTS
    )
    return load_adapter(load_base(saved_models / "llava"), folder)


@pytest.mark.parametrize("how", ["as it is", "before 4.52", "a vision_model", "ddp", "PEFT's"])
def test_what_was_trained_beside_is_put_where_it_belongs(
    saved_models: Path, tmp_path: Path, how: str
) -> None:
    named: dict[str, Written] = {
        "as it is": lambda name: name,
        "before 4.52": name_old_llava,
        "a vision_model": name_vision_model,
        "ddp": lambda name: f"module.{name}",
        "PEFT's": lambda name: WITHIN + name,
    }
    model = load_with_trained_parts(
        saved_models, tmp_path / "adapter", lambda all_: {named[how](n): all_[n] for n in all_}
    )
    moved = 0
    before = dict(load_base(saved_models / "llava").named_parameters())
    for name, value in model.get_base_model().named_parameters():
        if name in before and "language_model" not in name and "lm_head" not in name:
            assert torch.equal(value, before[name] + 1), name
            moved += 1
    assert moved > 40  # 3 tower layers of 16, embeddings, norms, projector, less those adapted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda all_: {"model.elsewhere.weight": torch.zeros(1)},
            r"1 of its 1 weights do not exist in it \(model.elsewhere.weight\): name the model",
        ),
        (drop_weights("linear_2.bias"), r"1 of the \d+ modules .*\(.*linear_2\): it is incomplete"),
        (drop_weights("encoder.layers.1."), r"8 of the \d+ modules that were trained get none"),
        (
            lambda all_: {n: v[:1] if "linear_1.weight" in n else v for n, v in all_.items()},
            r"1 have another shape \(model.multi_modal_projector.linear_1.weight is 1×32, in",
        ),
        (
            lambda all_: {n: v / 0 if "linear_1.bias" in n else v for n, v in all_.items()},
            r"1 of its weights are not finite \(model.multi_modal_projector.linear_1.bias\)",
        ),
    ],
)
def test_what_was_trained_beside_another_model_is_refused(
    saved_models: Path, tmp_path: Path, change: Any, said: str
) -> None:
    with pytest.raises(UnfitError, match=f"{TRAINED_PARTS}.*{said}"):
        load_with_trained_parts(saved_models, tmp_path / "adapter", change)


def test_one_part_alone_may_have_been_trained(saved_models: Path, tmp_path: Path) -> None:
    model = load_with_trained_parts(
        saved_models, tmp_path / "adapter", drop_weights("vision_tower")
    )
    projector = model.get_base_model().model.multi_modal_projector.linear_1.weight
    before = load_base(saved_models / "llava").model.multi_modal_projector.linear_1.weight
    assert torch.equal(projector, before + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda all_: {f"module.{name}": all_[name] for name in all_},
            r"lacks \d+ of its weights .* would be random: they have 'module' in",
        ),
        (
            lambda all_: {**all_, "lm_head.lora_A.default.weight": torch.zeros(2, 32)},
            r"has 1 weights of an adapter .*lm_head.lora_A.*: merge the adapter and save the model",
        ),
        (
            lambda all_: {n: v[:3] if "linear_1.bias" in n else v for n, v in all_.items()},
            r"1 of its weights have another shape than its config.json says \(.*linear_1.bias is 3",
        ),
        (
            lambda all_: {n: v / 0 if "linear_1.bias" in n else v for n, v in all_.items()},
            r"1 of its weights are not finite \(model.multi_modal_projector.linear_1.bias\)",
        ),
    ],
)
def test_a_whole_model_has_each_weight_and_no_more(
    saved_models: Path, tmp_path: Path, change: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_models / "llava", folder)
    weights = {name: value.contiguous() for name, value in load_base(folder).state_dict().items()}
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    with pytest.raises(UnfitError, match=said):
        load_base(folder)
    assert not capfd.readouterr().err  # no table of transformers' beside the line


def test_buffers_that_a_model_makes_itself_may_be_there(saved_models: Path, tmp_path: Path) -> None:
    """Folders of older transformers have them."""
    folder = tmp_path / "model"
    shutil.copytree(saved_models / "llava", folder)
    weights = {name: value.contiguous() for name, value in load_base(folder).state_dict().items()}
    old = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 17),
    }
    save_file({**weights, **old}, folder / "model.safetensors", metadata={"format": "pt"})
    assert all(torch.equal(v, weights[n]) for n, v in load_base(folder).state_dict().items())


def test_the_layout_is_todays_where_no_other_knows_more(saved_models: Path) -> None:
    model = load_base(saved_models / "qwen2_5_vl")
    names = [name for name, _ in model.named_parameters()]
    assert find_layout(model, names).is_current
    assert find_layout(model, []).is_current
    old = find_layout(model, [name_old_qwen(name) for name in names])
    assert not old.is_current
    assert [old.to_model_name(name_old_qwen(name)) for name in names] == names
