"""Answers of a model to a benchmark's items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from chip_core.evaluation.task import Item


@torch.inference_mode()
def generate(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 64,
    bf16: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return one response an item, in the items' order, without sampling.

    Args:
        model: an image-text-to-text model.
        processor: its processor.
        items: the questions.
        max_new_tokens: longest response.
        num_beams: beams; 1 is greedy.
        batch_size: items decoded together; padded on the left.
        bf16: whether to compute in bfloat16 (autocast).
        on_batch: called with (items done, items in all).
    """
    device = next(model.parameters()).device
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    model.eval()
    responses: list[str] = []
    for start in range(0, len(items), batch_size):
        part = [items[index] for index in range(start, min(start + batch_size, len(items)))]
        batch = processor(
            images=[[item.image] for item in part],
            text=[_prompt(processor, item.prompt) for item in part],
            padding=True,
            return_tensors="pt",
        ).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            ids = model.generate(
                **batch,
                do_sample=False,
                num_beams=num_beams,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        responses += tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        if on_batch is not None:
            on_batch(len(responses), len(items))
    return responses


def _prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text
