"""Greedy decoding whose answers do not depend on what they are made together with.

The same row gives other last digits in another batch: sums are taken in another order. Where the
two best tokens are nearly equal, that would decide between them, and with them the whole rest of
the answer. So near ties are decided by one computation that is always the same: the row alone,
without padding, from its first token on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from chip_core.evaluation.inference.prompts import Prompt
from chip_core.models.precision import as_held

#: A lead under this share of the largest logit is a near tie. Rounding in fp32 moves logits by
#: less than a millionth of it (docs/evaluation.md), so no larger lead is turned round by it.
NEAR = 2e-4


class NearTies(LogitsProcessor):  # type: ignore[misc]
    """Puts a row's own logits in place of the batch's where these leave it open which is best."""

    def __init__(self, model: Any, prompts: Sequence[Prompt], start: int, ends: set[int]) -> None:
        """Make ready for one batch.

        Args:
            model: the model.
            prompts: of the rows.
            start: where in the batch's ids the answers begin.
            ends: tokens that end an answer.
        """
        self._model = model
        self._prompts = prompts
        self._start = start
        self._ends = ends
        self.decided = 0  # near ties so far

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V) of the next tokens."""
        best = scores.topk(2, dim=-1).values
        near = best[:, 0] - best[:, 1] <= NEAR * scores.masked_fill(scores.isinf(), 0).abs().amax(
            -1
        )
        for row in near.nonzero().flatten().tolist():
            answer = input_ids[row, self._start :].tolist()
            if self._ends.isdisjoint(answer):
                alone = next_logits(self._model, self._prompts[row], answer)
                scores[row] = alone.masked_fill(scores[row].isinf(), -torch.inf)
                self.decided += 1
        return scores


def next_logits(model: Any, prompt: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """Return the logits (V,) of the token after a prompt and an answer, computed alone.

    The answer goes on from the prompt: a token in it that stands for a picture is a word there.
    """
    device = next(model.parameters()).device
    out = model(**as_held(prompt.inputs(device), model), use_cache=True)
    if answer:
        said = torch.tensor([list(answer)], device=device)
        out = model(input_ids=said, past_key_values=out.past_key_values, use_cache=True)
    logits: Tensor = out.logits
    return logits[0, -1].float()
