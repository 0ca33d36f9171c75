"""How prompts and responses lie in the rows that a decoder reads.

`[prompt][response]` is a row of its own; `[prompt][chosen][rejected]` shares the prompt, and the
image with it: each response's positions go on where the prompt ends, and none of its tokens sees
the other response. Both are laid out here, so that what reads them takes one way.

Shapes: B pairs, T tokens of a row, P of a prompt, C of a response, N tokens of all responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.data.tensors import Prompts, Responses, is_by_token


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a decoder reads, and where it predicts the responses."""

    input_ids: Tensor  # (B, T), padded on the right
    mask: Tensor  # (B, T) bool, true on tokens
    segments: Tensor  # (B, T) 0 on the prompt, 1 on the first response, 2 on the second
    positions: Tensor | None  # (B, T), or (3, B, T) for Qwen-VL; None where nothing restarts
    inputs: dict[str, Tensor]  # pixel values and their like
    predicting: tuple[tuple[Tensor, Tensor], ...]  # of each response: (rows, places), (N,) each

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Return what a model takes as `attention_mask`.

        (B, T) where a row has one response; else (B, 1, T, T), 0 where a token sees another and
        very negative where not. Never a mask of booleans, which eager attention would add.
        """
        if self.positions is None:
            return self.mask.long()
        places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        queries, keys = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((keys == 0) | (keys == queries)) & (places[:, None] >= places)
        # Padding lies behind every token, so that none sees it; it sees itself, to see something.
        hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return hidden.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def lay_out(prompts: Prompts, responses: Sequence[Responses], *, model: Any | None = None) -> Rows:
    """Return each pair's prompt and, behind it, its responses.

    Args:
        prompts: the prompts.
        responses: one or more for each prompt.
        model: where there are more than one: says how positions are counted, if it has its own
            way (`get_rope_index` of Qwen-VL).
    """
    numbered = [(0, prompts.ids, prompts.mask)]
    numbered += [(number + 1, part.ids, part.mask) for number, part in enumerate(responses)]
    ids = torch.cat([part for _, part, _ in numbered], 1)
    mask = torch.cat([part for _, _, part in numbered], 1)
    segments = torch.cat([torch.full_like(part, number) for number, part, _ in numbered], 1)
    # Tokens move to the left over the padding between the parts; they keep their order.
    length = int(mask.sum(1).max())
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :length]
    places = mask.cumsum(1) - 1  # (B, all columns): where a token comes to lie
    prompt_ends = prompts.mask.sum(1)
    predicting = []
    start = prompts.ids.shape[1]
    for part in responses:
        own = places[:, start : start + part.ids.shape[1]]
        before = torch.cat([prompt_ends[:, None] - 1, own[:, :-1]], 1)
        rows, columns = part.mask.nonzero(as_tuple=True)
        predicting.append((rows, before[rows, columns]))
        start += part.ids.shape[1]
    positions = None
    if len(responses) > 1:
        counted = _positions(prompts, responses, model)
        index = order if counted.ndim == 2 else order.expand(len(counted), -1, -1)
        positions = counted.gather(-1, index)
    grow = (0, ids.shape[1] - prompts.ids.shape[1])
    return Rows(
        input_ids=ids.gather(1, order),
        mask=mask.gather(1, order),
        segments=segments.gather(1, order),
        positions=positions,
        inputs={
            name: torch.nn.functional.pad(value, grow).gather(1, order)
            if is_by_token(name)
            else value
            for name, value in prompts.inputs.items()
        },
        predicting=tuple(predicting),
    )


def _positions(prompts: Prompts, responses: Sequence[Responses], model: Any | None) -> Tensor:
    """Return the position of every column: responses go on behind the prompt's last."""
    index = getattr(model, "get_rope_index", None)
    if index is None:
        of_prompt = torch.arange(prompts.ids.shape[1], device=prompts.ids.device)
        of_prompt = of_prompt.expand_as(prompts.ids)
        following = prompts.mask.sum(1, keepdim=True)
    else:
        known = {name: value for name, value in prompts.inputs.items() if "grid" in name}
        known |= {name: value for name, value in prompts.inputs.items() if is_by_token(name)}
        of_prompt, _ = index(prompts.ids, attention_mask=prompts.mask.long(), **known)
        largest = of_prompt.masked_fill(~prompts.mask, 0).amax((0, 2))
        following = (largest + 1)[:, None].expand(len(of_prompt), -1, -1)
    counted = [of_prompt]
    for part in responses:
        steps = torch.arange(part.ids.shape[1], device=part.ids.device)
        counted.append(following + steps)
    return torch.cat(counted, -1)
