"""Answers drawn at random, each by a seed of its own, the same whatever they are made beside.

A token is drawn by the Gumbel-max trick (Gumbel 1954): to each logit, divided by the temperature,
a draw of the standard Gumbel distribution is added, and the largest sum is taken; that is a draw
from the softmax. So drawing is an argmax, and what greedy decoding does about rounding serves here
too (ties.py): where the batch's last digits could turn the largest sum, or a token's place in the
nucleus, the row is computed alone.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from chip_core.evaluation.inference.prompts import Prompt
from chip_core.evaluation.inference.ties import NEAR, next_logits
from chip_core.utils.seeding import derived_seed


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 1.0  # above 0
    top_p: float = 1.0  # the nucleus' mass (Holtzman et al. 2020); 1: every token may be drawn
    seed: int = 0

    def seed_of(self, item: str) -> int:
        """Return the seed of one answer, by the id of what is asked."""
        return derived_seed("sample", self.seed, item)


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row one token: the one that is drawn."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        start: int,
        ends: set[int],
        exact: bool,
    ) -> None:
        """Make ready for one batch.

        Args:
            model: the model.
            prompts: of the rows.
            sampling: how tokens are drawn.
            start: where in the batch's ids the answers begin.
            ends: tokens that end an answer.
            exact: whether rows that rounding could decide are computed alone.
        """
        device = next(model.parameters()).device
        self._model, self._prompts, self._sampling = model, prompts, sampling
        self._start, self._ends, self._exact = start, ends, exact
        self._draws = [
            torch.Generator(device).manual_seed(sampling.seed_of(prompt.item)) for prompt in prompts
        ]
        self.decided = 0  # rows computed alone so far

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) of which only the drawn token's is finite."""
        size = scores.shape[-1]
        waits = [
            torch.empty(size, dtype=torch.float64, device=scores.device).exponential_(generator=own)
            for own in self._draws
        ]
        noise = -torch.stack(waits).log()
        drawn, unsure = draw(scores, noise, self._sampling)
        for row in unsure.nonzero().flatten().tolist() if self._exact else ():
            answer = input_ids[row, self._start :].tolist()
            if self._ends.isdisjoint(answer):
                alone = next_logits(self._model, self._prompts[row], answer)
                alone = alone.masked_fill(scores[row].isinf(), -torch.inf)
                drawn[row] = draw(alone[None], noise[row : row + 1], self._sampling)[0][0]
                self.decided += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the tokens (B,) that are drawn, and for each whether rounding could turn it.

    Args:
        logits: (B, V).
        noise: draws (B, V) of the standard Gumbel distribution.
        sampling: how.
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
    """Return which tokens (B, V) may be drawn: those before which the mass is below `top_p`.

    Args:
        logits: (B, V) in float64.
        sampling: how.
        off: (B, 1) how far a logit may be off. Above 0, all tokens that may belong are returned;
            below, only those that do in any case.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    mass = (ordered / sampling.temperature).softmax(-1)
    before = torch.nn.functional.pad(mass.cumsum(-1), (1, 0))
    # How many are more likely than a token, by more than two logits can be off together.
    rank = torch.searchsorted(-ordered, -(ordered + 2 * off))
    above = before.gather(1, rank)
    # Where logits are off the other way, a token counts among those before itself.
    above = torch.where(off < 0, above - mass, above)
    within = above - 2 * off / sampling.temperature < sampling.top_p
    within[:, :1] |= off >= 0  # one token may always be drawn
    return torch.zeros_like(within).scatter_(1, order, within)
