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

from chip_core.evaluation.inference.kv_cache import get_returned_cache, make_cache_argument
from chip_core.evaluation.inference.prompts import Prompt
from chip_core.models.precision import match_dtype


@dataclass(eq=False, kw_only=True)
class Row:
    """A question, and its answer so far."""

    prompt: Prompt
    answer_ids: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None  # of a sampled answer, after its first token


class TokenChooser(Protocol):
    """Chooses tokens, independently of the rows computed in the same batch."""

    def __call__(self, rows: Sequence[Row], scores: Tensor) -> list[int]:
        """Return each row's next token; the scores (N, V) are not needed afterwards."""
        ...


class ChosenTokens(LogitsProcessor):  # type: ignore[misc]
    """Makes transformers' `generate` take the chosen tokens."""

    def __init__(
        self, chooser: TokenChooser, prompts: Sequence[Prompt], *, start: int, end_tokens: set[int]
    ) -> None:
        """Set up for one batch.

        Args:
            chooser: chooses tokens.
            prompts: of the batch's rows.
            start: the index in the batch's ids at which the answers begin.
            end_tokens: tokens that end an answer.
        """
        self._chooser, self._start, self._end_tokens = chooser, start, end_tokens
        self._rows = [Row(prompt=prompt) for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (N, V) that are finite at one token of each row that has not ended."""
        open_rows = []
        for index, (row, ids) in enumerate(zip(self._rows, input_ids.tolist(), strict=True)):
            row.answer_ids = ids[self._start :]
            if self._end_tokens.isdisjoint(row.answer_ids):
                open_rows.append(index)
        if open_rows:
            indices = torch.tensor(open_rows, device=scores.device)
            tokens = self._chooser([self._rows[index] for index in open_rows], scores[indices])
            forced = torch.full_like(scores[indices], -torch.inf)
            forced.scatter_(1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)
            scores[indices] = forced
        return scores


def next_logits(model: Any, prompt: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """Return the logits (V,) of the token after a prompt and an answer, computed alone.

    Tokens of the answer count as text, even one that stands for a picture.
    """
    return compute_logits(model, prompt, answer)[-1]


def compute_logits(model: Any, prompt: Prompt, answer: Sequence[int] = ()) -> Tensor:
    """Return the logits after a prompt, and those after an answer if there is one, (1 or 2, V)."""
    device = next(model.parameters()).device
    output = model(**match_dtype(prompt.inputs(device), model), use_cache=True)
    logits: list[Tensor] = [output.logits[0, -1].float()]
    if answer:
        answer_tensor = torch.tensor([list(answer)], device=device)
        # Given explicitly, since Qwen-VL would continue from the positions of its last input.
        offsets = torch.arange(1, len(answer) + 1, device=device)
        output = model(
            input_ids=answer_tensor,
            position_ids=prompt_positions(model, prompt)[..., -1:] + offsets,
            **make_cache_argument(model, get_returned_cache(output)),
            use_cache=True,
        )
        logits.append(output.logits[0, -1].float())
    return torch.stack(logits)


def prompt_positions(model: Any, prompt: Prompt) -> Tensor:
    """Return a prompt's positions (1, T) as its family counts them; Qwen-VL's are (4, 1, T)."""
    device = next(model.parameters()).device
    # No position depends on pixels, which are large.
    pictures = {name: value for name, value in prompt.pictures.items() if name != "pixel_values"}
    return batch_positions(model, replace(prompt, pictures=pictures).inputs(device))


def batch_positions(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the positions (…, B, T) of a batch as its family counts them."""
    positions: Tensor = model._prepare_position_ids_for_generation(batch["input_ids"], batch)
    return positions


#: A lead under this share of the largest logit is a near tie. Rounding in fp32 moves logits by
#: less than a millionth of it (docs/evaluation.md), so it reverses no larger lead.
NEAR_TIE_MARGIN = 2e-4


class GreedyChooser:
    """Chooses the best token, from the row computed alone if the batch's logits are too close."""

    def __init__(self, model: Any, *, exact: bool) -> None:
        """Set up.

        Args:
            model: the model.
            exact: whether near ties are decided by the row alone.
        """
        self._model, self._exact = model, exact

    def __call__(self, rows: Sequence[Row], scores: Tensor) -> list[int]:
        """Return each row's next token."""
        if self._exact:
            for index in find_near_ties(scores).nonzero().flatten().tolist():
                exact_logits = next_logits(self._model, rows[index].prompt, rows[index].answer_ids)
                scores[index] = exact_logits.masked_fill(scores[index].isinf(), -torch.inf)
        tokens: list[int] = scores.argmax(-1).tolist()
        return tokens


def find_near_ties(scores: Tensor) -> Tensor:
    """Return which rows (N,) have two nearly equal best tokens."""
    best = scores.topk(2, dim=-1).values
    max_logits = scores.masked_fill(scores.isinf(), 0).abs().amax(-1)
    return best[:, 0] - best[:, 1] <= NEAR_TIE_MARGIN * max_logits
