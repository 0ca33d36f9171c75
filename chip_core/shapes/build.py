"""Train the embedded world's base captioner: `python -m chip_core.shapes.build OUT_DIR`.

Two stages, seeded, on one thread:

1. **Eyes.** The vision tower learns what is in each cell of crowded practice images with random
   objects. So its features show whether a partner is there.
2. **Habit.** With the tower frozen, projector and language model learn to caption the `corpus`
   split. There, partners are nearly always together, and if one is missing, the caption often names
   it anyway (`world.PAIRS`). So the captioner sees well, but invents the usual partners of what it
   sees.

It takes 5 to 6 minutes on one core (9 on a busy one), and reaches CHAIR_s 32.5 %, Cover 99.7 % on
`test`. The folder written loads with plain `from_pretrained`; its weights are bfloat16, and the
figures printed last are those of that folder loaded in float32.

Shapes: B batch, P image patches, C grid cells, T tokens, D hidden.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from chip_core.shapes.processor import PATCH_SIZE, build_processor
from chip_core.shapes.world import (
    COLOURS,
    GRID,
    IMAGE_SIZE,
    SHAPES,
    SPLIT_SIZES,
    Scene,
    compare_caption,
    draw_scene,
    get_question,
    make_corpus_caption,
    make_practice_sheet,
    make_scene,
)

SEED = 0
VISION_STEPS = 700
CAPTION_STEPS = 2000
BATCH_SIZE = 16
PEAK_LR = 1.5e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the base into a folder and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m chip_core.shapes.build", description=__doc__)
    parser.add_argument("out", type=Path, help="the folder to write")
    options = parser.parse_args(arguments)

    began = time.perf_counter()
    build(options.out)
    print(f"built in {time.perf_counter() - began:.0f} s: {options.out}")

    model = LlavaForConditionalGeneration.from_pretrained(options.out, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(options.out)
    for split in ("select", "test"):
        began = time.perf_counter()
        scenes = [make_scene(split, index) for index in range(SPLIT_SIZES[split])]
        answers = generate_captions(model, processor, scenes)
        seconds = time.perf_counter() - began
        print(
            f"{split:>6} ({len(scenes)} images, {seconds:.1f} s): "
            f"{_format_figures(scenes, answers)}"
        )
    return 0


def build(out: Path) -> None:
    """Train the base captioner from scratch and save it, processor included, in `out`."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    processor = build_processor()
    model = make_model(processor)
    train_vision_tower(model, processor)
    train_captioner(model, processor)
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)


def make_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Return the untrained captioner: CLIP 96 × 3, Llama 128 × 4, about 1.2 M parameters."""
    tokenizer = processor.tokenizer
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=96,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=344,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            bos_token_id=None,
            **special,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="default",
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **special)
    return model


def train_vision_tower(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Train the vision tower to recognize each cell's content, at the layer that LLaVA reads."""
    tower = model.model.vision_tower
    heads = nn.Linear(tower.config.hidden_size, len(SHAPES) + 1 + len(COLOURS))
    parameters = [*tower.parameters(), *heads.parameters()]
    label_ids = {name: index for index, name in enumerate((*SHAPES, "nothing"))}

    def compute_loss(step: int) -> Tensor:
        sheets = [make_practice_sheet(step * BATCH_SIZE + i) for i in range(BATCH_SIZE)]
        shapes = torch.full((BATCH_SIZE, GRID * GRID), label_ids["nothing"])
        colours = torch.full((BATCH_SIZE, GRID * GRID), -100)
        for row, sheet in enumerate(sheets):
            for thing in sheet.things:
                shapes[row, thing.cell] = label_ids[thing.shape]
                colours[row, thing.cell] = COLOURS.index(thing.colour)
        features = tower(_pixels(sheets, processor), output_hidden_states=True)
        logits = heads(features.hidden_states[model.config.vision_feature_layer][:, 1:])
        shape_logits, colour_logits = logits.split([len(label_ids), len(COLOURS)], dim=-1)
        return nn.functional.cross_entropy(
            shape_logits.flatten(0, 1), _labels_by_patch(shapes).flatten()
        ) + nn.functional.cross_entropy(
            colour_logits.flatten(0, 1), _labels_by_patch(colours).flatten()
        )

    _train("eyes", VISION_STEPS, parameters, compute_loss)


def train_captioner(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Train projector and language model to caption the corpus; the tower is frozen."""
    model.model.vision_tower.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def compute_loss(step: int) -> Tensor:
        scenes = [make_scene("corpus", step * BATCH_SIZE + i) for i in range(BATCH_SIZE)]
        answers = [make_corpus_caption(item) + processor.tokenizer.eos_token for item in scenes]
        batch = processor(
            images=[draw_scene(item) for item in scenes],
            text=[p + a for p, a in zip(_prompts(scenes, processor), answers, strict=True)],
            padding=True,
            return_tensors="pt",
        )
        # Padded on the left, so that an answer is the last tokens of its row.
        lengths = torch.tensor([len(ids) for ids in processor.tokenizer(answers)["input_ids"]])
        width = batch["input_ids"].shape[1]
        prompt = torch.arange(width) < width - lengths[:, None]
        labels = batch["input_ids"].masked_fill(prompt, -100)
        loss: Tensor = model(**batch, labels=labels).loss
        return loss

    _train("habit", CAPTION_STEPS, parameters, compute_loss)


@torch.inference_mode()
def generate_captions(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Sequence[Scene],
    batch_size: int = 100,
) -> list[str]:
    """Return the model's greedy answers to each scene's own question."""
    model.eval()
    answers: list[str] = []
    for start in range(0, len(scenes), batch_size):
        batch_scenes = scenes[start : start + batch_size]
        batch = processor(
            images=[draw_scene(shown) for shown in batch_scenes],
            text=_prompts(batch_scenes, processor),
            padding=True,
            return_tensors="pt",
        )
        ids = model.generate(**batch, do_sample=False, max_new_tokens=32)
        new_ids = ids[:, batch["input_ids"].shape[1] :]
        answers += processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
    return answers


def _format_figures(scenes: Sequence[Scene], answers: Sequence[str]) -> str:
    """Return CHAIR, Hal and Cover as the benchmark `shapes` defines them."""
    findings = [
        compare_caption(shown, answer) for shown, answer in zip(scenes, answers, strict=True)
    ]
    rates = {
        "chair_i": sum(finding.invented for finding in findings)
        / sum(finding.mentions for finding in findings),
        "chair_s": sum(finding.invented > 0 for finding in findings) / len(findings),
        "hal": sum(finding.invented + finding.miscoloured > 0 for finding in findings)
        / len(findings),
        "cover": sum(finding.covered for finding in findings)
        / sum(finding.objects for finding in findings),
    }
    return "  ".join(f"{name} {100 * rate:.1f}" for name, rate in rates.items())


def _prompts(scenes: Sequence[Scene], processor: LlavaProcessor) -> list[str]:
    return [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image"},
                        {"type": "text", "text": get_question(shown.split, shown.index)},
                    ],
                }
            ],
            add_generation_prompt=True,
        )
        for shown in scenes
    ]


def _pixels(scenes: Sequence[Scene], processor: LlavaProcessor) -> Tensor:
    batch = processor.image_processor([draw_scene(shown) for shown in scenes], return_tensors="pt")
    pixels: Tensor = batch["pixel_values"]
    return pixels


def _labels_by_patch(labels: Tensor) -> Tensor:
    """Give each image patch the label of its grid cell: (B, C) → (B, P)."""
    side = IMAGE_SIZE // PATCH_SIZE // GRID
    grid = labels.reshape(-1, GRID, GRID)
    return grid.repeat_interleave(side, 1).repeat_interleave(side, 2).flatten(1)


def _train(
    stage: str,
    steps: int,
    parameters: list[nn.Parameter],
    compute_loss: Callable[[int], Tensor],
) -> None:
    """Run AdamW with a linear warm-up and a cosine decay, and print the progress now and then."""
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LR, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    began = time.perf_counter()
    for step in range(steps):
        loss = compute_loss(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            elapsed = time.perf_counter() - began
            remaining = elapsed / (step + 1) * (steps - step - 1)
            print(
                f"{stage}: step {step + 1}/{steps}  loss {loss.item():.4f}  "
                f"{elapsed:.0f} s, {remaining:.0f} s to go",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
