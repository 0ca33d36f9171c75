"""Sampled answers, each with a seed of its own, independent of how they are batched.

A token is sampled by the Gumbel-max trick (Gumbel 1954): a draw of the standard Gumbel distribution
is added to each logit, divided by the temperature, and the largest sum is taken; that is a draw
from the softmax. So sampling is an argmax, and the remedy of greedy decoding for rounding (rows.py)
works here, too: if the batch's last digits could change the largest sum, or whether a token is in
the nucleus, the row is computed alone.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chip_core.evaluation.inference.rows import NEAR, Row, next_logits
from chip_core.utils.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled."""

    temperature: float = 1.0  # above 0
    top_p: float = 1.0  # the nucleus' mass (Holtzman et al. 2020); 1: every token may be drawn
    seed: int = 0

    def seed_of(self, item: str) -> int:
        """Return the seed of one answer, which depends on the question's id."""
        return derive_seed("sample", self.seed, item)


class Draws:
    """Chooses tokens by sampling."""

    def __init__(self, model: Any, sampling: Sampling, *, exact: bool) -> None:
        """Set up.

        Args:
            model: the model.
            sampling: how tokens are sampled.
            exact: whether rows that rounding could decide are computed alone.
        """
        self._model, self._sampling, self._exact = model, sampling, exact
        self.decided = 0  # rows computed alone so far

    def __call__(self, rows: Sequence[Row], scores: Tensor) -> list[int]:
        """Return each row's next token."""
        waits = []
        for row in rows:
            if row.draws is None:
                seed = self._sampling.seed_of(row.prompt.item)
                row.draws = torch.Generator(scores.device).manual_seed(seed)
            wait = torch.empty(scores.shape[-1], dtype=torch.float64, device=scores.device)
            waits.append(wait.exponential_(generator=row.draws))
        noise = -torch.stack(waits).log()
        drawn, unsure = draw(scores, noise, self._sampling)
        for place in unsure.nonzero().flatten().tolist() if self._exact else ():
            alone = next_logits(self._model, rows[place].prompt, rows[place].said)
            alone = alone.masked_fill(scores[place].isinf(), -torch.inf)
            drawn[place] = draw(alone[None], noise[place : place + 1], self._sampling)[0][0]
            self.decided += 1
        tokens: list[int] = drawn.tolist()
        return tokens


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample tokens (B,), and return for each whether rounding could change it.

    Args:
        logits: (B, V).
        noise: draws (B, V) of the standard Gumbel distribution.
        sampling: how tokens are sampled.
    """
    logits = logits.double()
    off = NEAR * logits.masked_fill(logits.isinf(), 0).abs().amax(-1, keepdim=True)
    sums = logits + sampling.temperature * noise
    if sampling.top_p == 1:
        kept = sure = torch.ones_like(logits, dtype=torch.bool)
        larger = sums
    else:
        kept = _nucleus(logits, sampling, torch.zeros_like(off))
        sure, larger = _nucleus(logits, sampling, -off), _nucleus(logits, sampling, off)
        larger = sums.masked_fill(~larger, -torch.inf)
    drawn = sums.masked_fill(~kept, -torch.inf).argmax(-1)
    best = larger.topk(2, dim=-1)
    unsure = best.values[:, 0] - best.values[:, 1] <= off[:, 0]
    unsure |= (best.indices[:, 0] != drawn) | ~sure.gather(1, drawn[:, None])[:, 0]
    return drawn, unsure


def _nucleus(logits: Tensor, sampling: Sampling, off: Tensor) -> Tensor:
    """Return which tokens (B, V) may be sampled: those before which the mass is below `top_p`.

    Args:
        logits: (B, V) in float64.
        sampling: how tokens are sampled.
        off: (B, 1) the largest error of a logit. Above 0, all tokens that may belong are returned;
            below, only those that certainly do.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    mass = (ordered / sampling.temperature).softmax(-1)
    before = torch.nn.functional.pad(mass.cumsum(-1), (1, 0))
    # The number of tokens that lead by more than two logits' errors together.
    rank = torch.searchsorted(-ordered, -(ordered + 2 * off))
    above = before.gather(1, rank)
    # If logits are off the other way, a token counts among those before itself.
    above = torch.where(off < 0, above - mass, above)
    within = above - 2 * off / sampling.temperature < sampling.top_p
    within[:, :1] |= off >= 0  # one token may always be sampled
    return torch.zeros_like(within).scatter_(1, order, within)
