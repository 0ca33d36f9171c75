"""Measure how fast questions are answered in several ways, and whether the answers differ.

    python -m benchmarks.generation [--json]

- `described`: the embedded world's questions, one a picture, about 20 tokens an answer.
- `asked`: pictures of 576 tokens with 14 short questions each, as AMBER's, on a small LLaVA with
  random weights (hidden 256, 4 layers); an answer is one token.

Each is answered one question at a time, in batches, and in batches that compute a picture once;
the figures are ratios within one run. Then the embedded world's questions are answered with three
beams and in bfloat16: how many answers change with the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from chip_core.config.trial import ModelConfig
from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.inference import generate
from chip_core.evaluation.task import Item, Picture
from chip_core.models import loading
from chip_core.shapes.world import COLOURS, SHAPES, draw_scene, make_scene

BATCH = 32
ROUNDS = 3  # of each way, in turn: the quickest counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch "
        f"{torch.__version__}",
        "described": measure_descriptions(),
        "asked": measure_questions(),
        "depends on the batch": count_batch_dependent(),
    }
    if options.json:
        print(json.dumps(found))
        return
    print(found["machine"])
    for name in ("described", "asked"):
        for way, rate in found[name].items():  # type: ignore[attr-defined]
            print(f"{name}: {way}: {rate:.2f}" + ("" if "against" in way else " items/s"))
    for what, (changed, of) in found["depends on the batch"].items():  # type: ignore[attr-defined]
        print(f"{what}: {changed} of {of} answers are others in batches of {BATCH}")


def measure_descriptions() -> dict[str, float]:
    """Answer 64 questions of the embedded world."""
    model, processor = loading.load(ModelConfig(path="shapes"))
    items = BENCHMARKS["shapes"].items("report", data=None, protocol="official")[:64]

    def way(size: int) -> Callable[[], Any]:
        return lambda: generate(model, processor, items, max_new_tokens=32, batch_size=size)

    rates = _measure_rates({"one at a time": way(1), f"batches of {BATCH}": way(BATCH)}, len(items))
    single, batched = rates.values()
    return {**rates, "batches against one at a time": batched / single}


def measure_questions() -> dict[str, float]:
    """Answer 14 questions on each of 4 pictures."""
    model, processor = large_pictures()
    items = questions(pictures=4, each=14)

    def way(size: int, share: bool) -> Callable[[], Any]:
        return lambda: generate(
            model, processor, items, max_new_tokens=1, batch_size=size, share_prefix=share
        )

    rates = _measure_rates(
        {
            "one at a time": way(1, False),
            f"batches of {BATCH}": way(BATCH, False),
            f"batches of {BATCH}, a picture once": way(BATCH, True),
        },
        len(items),
    )
    single, batched, shared = rates.values()
    return {
        **rates,
        "batches against one at a time": batched / single,
        "a picture once against batches": shared / batched,
        "a picture once against one at a time": shared / single,
    }


def count_batch_dependent() -> dict[str, tuple[int, int]]:
    """Count the answers that change when they are computed in batches."""
    items = BENCHMARKS["shapes"].items("report", data=None, protocol="official")[:200]
    changed = {}
    for what, dtype, settings in (
        ("greedy, fp32", "fp32", {}),
        ("three beams, fp32", "fp32", {"num_beams": 3}),
        ("greedy, bf16", "bf16", {"bf16": True}),
    ):
        model, processor = loading.load(ModelConfig(path="shapes", dtype=dtype))
        alone, together = (
            generate(
                model,
                processor,
                items,
                max_new_tokens=32,
                batch_size=size,
                **settings,  # type: ignore[arg-type]
            )
            for size in (1, BATCH)
        )
        differ = sum(one != other for one, other in zip(alone, together, strict=True))
        changed[what] = (differ, len(items))
    return changed


# benchmarks/answers.py imports the next two from other builds, too: their names stay.
def large_pictures() -> tuple[Any, Any]:
    """Return a LLaVA with random weights whose pictures are 576 tokens, with shapes' words."""
    _, processor = loading.load(ModelConfig(path="shapes"))
    processor.image_processor.size = {"height": 192, "width": 192}
    processor.image_processor.crop_size = {"height": 192, "width": 192}
    words = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=192,
            patch_size=8,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=1024,
            pad_token_id=words.pad_token_id,
            eos_token_id=words.eos_token_id,
            bos_token_id=None,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=576,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    return model, processor


def questions(*, pictures: int, each: int) -> list[Item]:
    """Return short questions, several a picture."""
    items = []
    for index in range(pictures):
        shown = draw_scene(make_scene("test", index)).resize((192, 192), Image.Resampling.NEAREST)
        picture = Picture(key=str(index), read=lambda shown=shown: shown)  # type: ignore[misc]
        for number in range(each):
            colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
            prompt = " ".join([f"a {colour} {shape} and"] * (1 + number % 3)) + f" a {shape}"
            items.append(Item(id=f"{index}/{number}", prompt=prompt, pictures=(picture,)))
    return items


def _measure_rates(ways: dict[str, Callable[[], Any]], items: int) -> dict[str, float]:
    """Return items a second of each way; the ways take turns."""
    best = dict.fromkeys(ways, float("inf"))
    answers: dict[str, Sequence[str]] = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            answers[name] = way()
            best[name] = min(best[name], time.perf_counter() - began)
    first, *others = answers.values()
    assert all(other == first for other in others), "the answers depend on the way"
    return {name: items / seconds for name, seconds in best.items()}


if __name__ == "__main__":
    main()
