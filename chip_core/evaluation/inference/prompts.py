"""A model's input for a question.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chip_core.data.tensors import stack_inputs

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question as model input, without padding."""

    ids: list[int]
    pictures: Inputs  # pixel values and other inputs of the image processor
    token_types: Mapping[str, list[int]]  # one entry a token: Qwen-VL's marks of its image tokens
    vision_end: int  # tokens up to and including the last one of a picture; 0 without one
    item: str = ""  # the question's id, which seeds the sampling of its answer

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return it as a batch of one."""
        return pad_batch([self], [self.ids], device)


def pad_batch(
    prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], device: torch.device, *, pad: int = 0
) -> dict[str, Tensor]:
    """Return rows as one batch, padded on the left.

    Args:
        prompts: the prompts, for their pictures.
        ids: the tokens of each row: a prompt's own, or with some of its answer, or its beginning.
        device: the device of the batch.
        pad: the padding token.
    """
    longest = max(map(len, ids))
    batch = {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + list(row) for row in ids]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        ),
    }
    for name in prompts[0].token_types:
        rows = []
        for prompt, row in zip(prompts, ids, strict=True):
            token_types = (prompt.token_types[name] + [0] * len(row))[: len(row)]
            rows.append([0] * (longest - len(row)) + token_types)
        batch[name] = torch.tensor(rows)
    if any(prompt.pictures for prompt in prompts):
        pictures = [dict(prompt.pictures) for prompt in prompts if prompt.pictures]
        batch.update(stack_inputs(pictures, tokens=longest))
    return {name: value.to(device) for name, value in batch.items()}


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning of two sequences."""
    for index, (first_value, second_value) in enumerate(zip(first, second, strict=False)):
        if first_value != second_value:
            return index
    return min(len(first), len(second))
