"""The estimate of a step's memory against what the trainer's own steps take of the allocator."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText

from chip_core.config.trial import TrialConfig
from chip_core.data.preferences import PreferencePair
from chip_core.models.adapters import attach_adapters
from chip_core.models.parts import is_adapter, select_trained_parameters
from chip_core.models.precision import DTYPES, convert_weights
from chip_core.training.footprint.estimate import estimate_footprint, estimate_operations
from chip_core.training.footprint.step import RowShape
from chip_core.training.trainer import Trainer

from ... import families

WORDS = ["a", "red", "dog", "and", "a", "blue", "car", "on", "the", "green", "tree"]
CHOSEN, REJECTED = 90, 120  # words, each a token


def make_wider_model(family: str) -> tuple[Any, Any]:
    """Make a family's model in which weights and activations count for something."""
    found, processor = families.FAMILIES[family]()
    for part, width in ((found.text_config, 128), (found.vision_config, 64)):
        part.hidden_size, part.intermediate_size = width, 2 * width
    found.text_config.num_hidden_layers, found.text_config.vocab_size = 4, 1009
    return found, processor


def make_pairs() -> families.ListPairs:
    """Make four pairs of one length, so that a shape says all of them."""
    made = families.ListPairs()
    for number in range(4):
        texts = [
            " ".join(WORDS[(number + n) % len(WORDS)] for n in range(words - 1)) + " ."
            for words in (CHOSEN, REJECTED)
        ]
        image = Image.new("RGB", (64, 64), (200, 40 * number, 90))
        made.append(
            PreferencePair(
                id=str(number),
                image=image,
                prompt="what is here ?",
                chosen=texts[0],
                rejected=texts[1],
                other=texts[0].replace("red", "green"),
                second_image=Image.new("RGB", (64, 64), (90, 40 * number, 200)),
            )  # fmt: skip
        )
    return made


@dataclass
class MeasuredBytes:
    """Bytes of a training, as the allocator saw them."""

    steps: int  # at the fullest moment of its steps, beside what was there before
    weights: int


def measure_training(
    config: TrialConfig, family: str, folder: Path
) -> tuple[MeasuredBytes, RowShape]:
    """Train two steps; return what they took, and the shape of their rows."""
    found, processor = make_wider_model(family)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(found, dtype=torch.float32).eval()
    model = attach_adapters(model, config)
    model = convert_weights(model, config.model.dtype)
    weights = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    given = make_pairs()
    with Trainer(config, model=model, processor=processor, pairs=given, folder=folder) as trainer:
        batch = trainer.batches.encode_shortest_pair()
        shape = RowShape(
            pairs=config.engine.micro_batch,
            image=int((batch.prompts.ids == processor.image_token_id).sum()),
            text=0,
            chosen=int(batch.chosen.mask.sum()),
            rejected=int(batch.rejected.mask.sum()),
            tiles=batch.prompts.inputs["pixel_values"].shape[-4] if family == "llava_next" else 1,
        )
        text = int(batch.prompts.mask.sum()) - shape.image
        shape = RowShape(**{**shape.__dict__, "text": text})
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            trainer.train(on_step=lambda *_: None)
    trace = folder / "trace.json"
    seen.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    noted = [e for e in events if e.get("name") == "[memory]"]
    noted.sort(key=lambda event: event["ts"])
    totals = [event["args"]["Total Allocated"] for event in noted]
    before = totals[0] - noted[0]["args"]["Bytes"]  # of earlier profiles in this process
    assert len(totals) > 1000
    return MeasuredBytes(steps=max(totals) - before, weights=weights), shape


def count_initial_bytes(config: TrialConfig, family: str) -> int:
    """Count the bytes that a trainer holds before its first step: old weights, and masters."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            make_wider_model(family)[0], dtype=torch.float32
        )
        model = attach_adapters(model, config)
    held = DTYPES[config.model.dtype]
    size = 0
    for part in select_trained_parameters(model, config).values():
        for name, parameter in part.items():
            copied = config.objective.reference_reads and not is_adapter(name)
            size += held.itemsize * parameter.numel() if copied else 0
            size += 0 if held == torch.float32 else 4 * parameter.numel()
    return size


BF16 = {"path": "x", "dtype": "bf16"}


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("llava", {"engine": {"micro_batch": 2}}),
        ("llava_next", {"language_model": "lora", "model": BF16, "engine": {"micro_batch": 2}}),
        (
            "llava_next",
            {
                "language_model": "lora",
                "model": BF16,
                "engine": {"micro_batch": 4, "gradient_checkpointing": True},
                "objective": "dpo",
            },
        ),
        (
            "llava",
            {
                "vision_encoder": "trained",
                "engine": {"micro_batch": 2, "gradient_checkpointing": True},
                "objective": "dpo",
            },
        ),
        ("llava", {"engine": {"micro_batch": 4, "logits_chunk": 64}, "model": BF16}),
        (
            "llava",
            {
                "model": BF16,
                "training": {"batch_size": 4, "epochs": 2, "gradients": "bf16"},
                "engine": {"micro_batch": 2},
            },
        ),
        (
            "llava",
            {
                "vision_encoder": "lora",
                "projector": "lora",
                "language_model": "frozen",
                "engine": {"micro_batch": 2},
            },
        ),
        pytest.param(  # "lora" and "tower-adapters" together
            "llava_next",
            {
                "vision_encoder": "lora",
                "projector": "lora",
                "language_model": "lora",
                "model": BF16,
                "engine": {"micro_batch": 2},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(  # "checkpointing" with the image's responses beside
            "llava_next",
            {
                "language_model": "lora",
                "model": BF16,
                "engine": {"micro_batch": 2, "gradient_checkpointing": True},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(  # the same, trained in whole
            "llava",
            {"model": BF16, "engine": {"micro_batch": 2, "gradient_checkpointing": True}},
            marks=pytest.mark.slow,
        ),
        ("llava", {"engine": {"micro_batch": 2}, "objective": "symmpo"}),
        ("llava", {"engine": {"micro_batch": 2}, "objective": "sft"}),
    ],
    ids=[
        "full",
        "lora",
        "checkpointing",
        "tower",
        "chunks",
        "bf16-gradients",
        "tower-adapters",
        "adapters-everywhere",
        "chip-checkpointing-lora",
        "chip-checkpointing",
        "symmpo",
        "sft",
    ],  # fmt: skip
)
def test_it_is_what_the_trainers_steps_take(
    family: str, given: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        "model": "x",
        "reference_cache": "off",
        "training": {"batch_size": 4, "epochs": 2},
        **given,
    }
    config = TrialConfig.model_validate(settings)
    seen, shape = measure_training(config, family, tmp_path)
    found = estimate_footprint(make_wider_model(family)[0], config, shape, stored=False)
    assert found.weights == seen.weights
    estimated = found.total - found.weights - count_initial_bytes(config, family)
    print(f"{family} {given}: {estimated:,} estimated, {seen.steps:,} taken")
    assert estimated == pytest.approx(seen.steps, rel=0.05)


@pytest.mark.parametrize("given", [{"language_model": "lora"}, {"engine": {"micro_batch": 1}}])
def test_two_small_models_tell_of_a_large_one(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": "x", "training": {"batch_size": 4}, **given}
    config = TrialConfig.model_validate(settings)
    found = make_wider_model("llava")[0]
    found.text_config.num_hidden_layers = 7
    shape = RowShape(image=16, text=9, chosen=60, rejected=70)
    told = estimate_footprint(found, config, shape, stored=True)
    # All seven layers are made.
    monkeypatch.setattr("chip_core.training.footprint.estimate._SAMPLE_LAYERS", 7)
    assert told == estimate_footprint(found, config, shape, stored=True)


def test_operations_are_those_of_every_layer() -> None:
    """Three more layers, counted by hand."""
    config = TrialConfig.model_validate({"model": "x", "objective": "dpo"})
    found = make_wider_model("llava")[0]
    text = found.text_config
    shape = RowShape(image=16, text=9, chosen=60, rejected=70)
    made = estimate_operations(found, config, shape)
    more = copy.deepcopy(found)
    more.text_config.num_hidden_layers += 3
    width, inner = text.hidden_size, text.intermediate_size
    heads = text.num_attention_heads * text.head_dim
    # Queries and output, keys and values of half as many heads, three of the MLP.
    weights = 2 * width * heads + 2 * width * heads // 2 + 3 * width * inner
    tokens = 16 + 9 + 60 + 70
    # Prompt and first response see each other (what a causal mask hides counts); the second sees
    # the prompt and itself.
    first, second = 16 + 9 + 60, 70
    attention = 4 * heads * (first * first + second * (16 + 9 + second))
    layer = 2 * weights * tokens + attention
    grown = estimate_operations(more, config, shape)
    assert grown.forward - made.forward == 3 * layer
    # Backward: two products for each of the weights', five for attention's two.
    assert grown.step - made.step == 3 * (3 * 2 * weights * tokens + attention * 7 // 2)
