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

from chip_core.evaluation.inference.rows import NEAR_TIE_MARGIN, Row, next_logits
from chip_core.utils.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are sampled."""

    temperature: float = 1.0  # above 0
    top_p: float = 1.0  # the nucleus' mass (Holtzman et al. 2020); 1: every token may be drawn
    seed: int = 0

    def answer_seed(self, item: str) -> int:
        """Return the seed of one answer, which depends on the question's id."""
        return derive_seed("sample", self.seed, item)


class SamplingChooser:
    """Chooses tokens by sampling."""

    def __init__(self, model: Any, sampling: Sampling, *, exact: bool) -> None:
        """Set up.

        Args:
            model: the model.
            sampling: how tokens are sampled.
            exact: whether rows that rounding could decide are computed alone.
        """
        self._model, self._sampling, self._exact = model, sampling, exact

    def __call__(self, rows: Sequence[Row], scores: Tensor) -> list[int]:
        """Return each row's next token."""
        exponentials = []
        for row in rows:
            if row.generator is None:
                seed = self._sampling.answer_seed(row.prompt.item)
                row.generator = torch.Generator(scores.device).manual_seed(seed)
            exponential = torch.empty(scores.shape[-1], dtype=torch.float64, device=scores.device)
            exponentials.append(exponential.exponential_(generator=row.generator))
        noise = -torch.stack(exponentials).log()
        sampled, is_uncertain = sample_tokens(scores, noise, self._sampling)
        for index in is_uncertain.nonzero().flatten().tolist() if self._exact else ():
            exact_logits = next_logits(self._model, rows[index].prompt, rows[index].answer_ids)
            exact_logits = exact_logits.masked_fill(scores[index].isinf(), -torch.inf)
            sampled[index] = sample_tokens(
                exact_logits[None], noise[index : index + 1], self._sampling
            )[0][0]
        tokens: list[int] = sampled.tolist()
        return tokens


def sample_tokens(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sample tokens (B,), and return for each whether rounding could change it.

    Args:
        logits: (B, V).
        noise: draws (B, V) of the standard Gumbel distribution.
        sampling: how tokens are sampled.
    """
    logits = logits.double()
    max_error = NEAR_TIE_MARGIN * logits.masked_fill(logits.isinf(), 0).abs().amax(-1, keepdim=True)
    noisy_logits = logits + sampling.temperature * noise
    if sampling.top_p == 1:
        nucleus = certain_nucleus = torch.ones_like(logits, dtype=torch.bool)
        possible = noisy_logits
    else:
        nucleus = _nucleus(logits, sampling, torch.zeros_like(max_error))
        certain_nucleus = _nucleus(logits, sampling, -max_error)
        possible = _nucleus(logits, sampling, max_error)
        possible = noisy_logits.masked_fill(~possible, -torch.inf)
    sampled = noisy_logits.masked_fill(~nucleus, -torch.inf).argmax(-1)
    top = possible.topk(2, dim=-1)
    is_uncertain = top.values[:, 0] - top.values[:, 1] <= max_error[:, 0]
    is_uncertain |= (top.indices[:, 0] != sampled) | ~certain_nucleus.gather(1, sampled[:, None])[
        :, 0
    ]
    return sampled, is_uncertain


def _nucleus(logits: Tensor, sampling: Sampling, max_error: Tensor) -> Tensor:
    """Return which tokens (B, V) may be sampled: those before which the mass is below `top_p`.

    Args:
        logits: (B, V) in float64.
        sampling: how tokens are sampled.
        max_error: (B, 1) the largest error of a logit. Above 0, all tokens that may belong are
            returned; below, only those that certainly do.
    """
    sorted_logits, order = logits.sort(dim=-1, descending=True)
    mass = (sorted_logits / sampling.temperature).softmax(-1)
    cumulative = torch.nn.functional.pad(mass.cumsum(-1), (1, 0))
    # The number of tokens that lead by more than two logits' errors together.
    rank = torch.searchsorted(-sorted_logits, -(sorted_logits + 2 * max_error))
    mass_before = cumulative.gather(1, rank)
    # If logits are off the other way, a token counts among those before itself.
    mass_before = torch.where(max_error < 0, mass_before - mass, mass_before)
    is_inside = mass_before - 2 * max_error / sampling.temperature < sampling.top_p
    is_inside[:, :1] |= max_error >= 0  # one token may always be sampled
    return torch.zeros_like(is_inside).scatter_(1, order, is_inside)
