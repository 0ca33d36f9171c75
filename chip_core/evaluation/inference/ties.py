"""Greedy decoding whose answers do not depend on what they are made together with.

The same row gives other last digits in another batch: sums are taken in another order. Where the
two best tokens are nearly equal, that would decide between them, and with them the whole rest of
the answer. So near ties are decided by one computation that is always the same: the row alone,
without padding, from its first token on.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chip_core.evaluation.inference.rows import Row, next_logits

#: A lead under this share of the largest logit is a near tie. Rounding in fp32 moves logits by
#: less than a millionth of it (docs/evaluation.md), so no larger lead is turned round by it.
NEAR = 2e-4


class Greedy:
    """Chooses the best token, by a row's own logits where the batch's leave it open which."""

    def __init__(self, model: Any, *, exact: bool) -> None:
        """Make ready.

        Args:
            model: the model.
            exact: whether near ties are decided by the row alone.
        """
        self._model, self._exact = model, exact
        self.decided = 0  # near ties so far

    def __call__(self, rows: Sequence[Row], scores: Tensor) -> list[int]:
        """Return each row's next token."""
        if self._exact:
            for place in near_ties(scores).nonzero().flatten().tolist():
                alone = next_logits(self._model, rows[place].prompt, rows[place].said)
                scores[place] = alone.masked_fill(scores[place].isinf(), -torch.inf)
                self.decided += 1
        chosen: list[int] = scores.argmax(-1).tolist()
        return chosen


def near_ties(scores: Tensor) -> Tensor:
    """Return which rows' (N,) two best tokens are nearly equal."""
    best = scores.topk(2, dim=-1).values
    largest = scores.masked_fill(scores.isinf(), 0).abs().amax(-1)
    return best[:, 0] - best[:, 1] <= NEAR * largest
