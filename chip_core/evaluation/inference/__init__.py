"""Generate a model's answers to a benchmark's items, independent of how they are batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chip_core.evaluation.inference.batches import make_batches
from chip_core.evaluation.inference.decoder import Decoder
from chip_core.evaluation.task import Decoding, Item

__all__ = ["Decoder", "generate", "make_batches"]


def generate(  # noqa: PLR0913 (options of the public function)
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    batch_size: int = 64,
    bf16: bool = False,
    share_prefix: bool = True,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return one response for each item, in the items' order, without sampling.

    Args:
        model: an image-text-to-text model.
        processor: its processor.
        items: the questions, each with a unique id.
        max_new_tokens: longest response.
        num_beams: beams; 1 is greedy.
        batch_size: items decoded together; padded on the left.
        bf16: whether the weights and the computation are in bfloat16.
        share_prefix: whether a picture with several questions is computed once, and ended rows are
            replaced in the batch; else transformers' `generate` answers whole batches.
        on_batch: called with (items done, items in all).
    """
    decoding = Decoding(max_new_tokens=max_new_tokens, num_beams=num_beams)
    decoder = Decoder(model, processor, decoding, bf16=bf16, share_prefix=share_prefix)
    responses: dict[str, str] = {}
    for answers in decoder.stream(make_batches(items, size=batch_size), size=batch_size):
        responses.update((item.id, response.text) for item, response in answers)
        if on_batch is not None:
            on_batch(len(responses), len(items))
    return [responses[item.id] for item in items]
