"""Rows of unfinished answers, and the choice of their next tokens.

Greedy decoding must not depend on the other rows of a batch. The same row has other last digits in
another batch, because sums are computed in another order. If the two best tokens are nearly equal,
that would decide between them, and so change the rest of the answer. So near ties are decided by a
computation that is always the same: the row alone, without padding, from its first token on.

Shapes: B, N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor

from chip_core.evaluation.inference.kv_cache import cache_argument, returned_cache
from chip_core.evaluation.inference.prompts import Prompt
from chip_core.models.precision import match_dtype


@dataclass(eq=False, kw_only=True)
class Row:
    """A question, and its answer so far."""

    prompt: Prompt
    said: list[int] = field(default_factory=list)
    draws: torch.Generator | None = None  # of a sampled answer, after its first token


class Chooser(Protocol):
    """Chooses tokens, independently of the rows computed in the same batch."""

    def __call__(self, rows: Sequence[Row], scores: Tensor) -> list[int]:
        """Return each row's next token; the scores (N, V) are not needed afterwards."""
        ...


class Chosen(LogitsProcessor):  # type: ignore[misc]
    """Makes transformers' `generate` take the chosen tokens."""

    def __init__(
        self, chooser: Chooser, prompts: Sequence[Prompt], *, start: int, ends: set[int]
    ) -> None:
        """Set up for one batch.

        Args:
            chooser: chooses tokens.
            prompts: of the batch's rows.
            start: the index in the batch's ids at which the answers begin.
            ends: tokens that end an answer.
        """
        self._chooser, self._start, self._ends = chooser, start, ends
        self._rows = [Row(prompt=prompt) for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (N, V) that are finite at one token of each row that has not ended."""
        open_ = []
        for place, (row, said) in enumerate(zip(self._rows, input_ids.tolist(), strict=True)):
            row.said = said[self._start :]
            if self._ends.isdisjoint(row.said):
                open_.append(place)
        if open_:
            places = torch.tensor(open_, device=scores.device)
            chosen = self._chooser([self._rows[place] for place in open_], scores[places])
            only = torch.full_like(scores[places], -torch.inf)
            only.scatter_(1, torch.tensor(chosen, device=scores.device)[:, None], 0.0)
            scores[places] = only
        return scores


def next_logits(model: Any, prompt: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """Return the logits (V,) of the token after a prompt and an answer, computed alone.

    Tokens of the answer count as text, even one that stands for a picture.
    """
    return logits_alone(model, prompt, answer)[-1]


def logits_alone(model: Any, prompt: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """Return the logits after a prompt, and those after an answer if there is one, (1 or 2, V)."""
    device = next(model.parameters()).device
    out = model(**match_dtype(prompt.inputs(device), model), use_cache=True)
    found: list[Tensor] = [out.logits[0, -1].float()]
    if answer:
        said = torch.tensor([list(answer)], device=device)
        # Given explicitly, since Qwen-VL would continue from the positions of its last input.
        ahead = torch.arange(1, len(answer) + 1, device=device)
        out = model(
            input_ids=said,
            position_ids=positions_of(model, prompt)[..., -1:] + ahead,
            **cache_argument(model, returned_cache(out)),
            use_cache=True,
        )
        found.append(out.logits[0, -1].float())
    return torch.stack(found)


def positions_of(model: Any, prompt: Prompt) -> Tensor:
    """Return a prompt's positions (1, T) as its family counts them; Qwen-VL's are (4, 1, T)."""
    device = next(model.parameters()).device
    # No position depends on pixels, which are large.
    shown = {name: each for name, each in prompt.pictures.items() if name != "pixel_values"}
    return positions_in(model, replace(prompt, pictures=shown).inputs(device))


def positions_in(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the positions (…, B, T) of a batch as its family counts them."""
    found: Tensor = model._prepare_position_ids_for_generation(batch["input_ids"], batch)
    return found


#: A lead under this share of the largest logit is a near tie. Rounding in fp32 moves logits by
#: less than a millionth of it (docs/evaluation.md), so it reverses no larger lead.
NEAR = 2e-4


class Greedy:
    """Chooses the best token, from the row computed alone if the batch's logits are too close."""

    def __init__(self, model: Any, *, exact: bool) -> None:
        """Set up.

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
    """Return which rows (N,) have two nearly equal best tokens."""
    best = scores.topk(2, dim=-1).values
    largest = scores.masked_fill(scores.isinf(), 0).abs().amax(-1)
    return best[:, 0] - best[:, 1] <= NEAR * largest
