"""The facts of the global batch that a loss over several pairs needs.

To compute a batch in parts, or on several workers, first gather a `BatchTable` of all of it. The
facts computed from that are then the same everywhere, and each pair's loss does not depend on the
parts.

Shapes: N pairs of the global batch, B of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.parts import Method
from chip_core.objectives.scores import ResponseScores

#: State carried from batch to batch: the number of batches and a running mean.
State = dict[str, float]

_TEXT_VIEWS = ("chosen", "rejected")
_DAMA_FIELDS = ("image_text_scores/chosen", "image_text_scores/rejected")


@dataclass(frozen=True, kw_only=True)
class BatchTable:
    """A global batch as numbers, with its pairs in the same order on every worker."""

    tokens: int  # of all chosen responses
    pairs: int
    #: The columns of `table_columns` -> (N,), without a graph; none if the scope is `tokens`.
    columns: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """The facts of a global batch that the losses of some pairs read."""

    scalar: Mapping[str, float]
    pair: Mapping[str, Tensor]  # (N,), or (B,) after `select`
    table: BatchTable | None = None  # of all pairs

    def to(self, target: torch.device | torch.dtype) -> BatchFacts:
        """Return the facts on a device or in a precision."""
        pair = {name: values.to(target) for name, values in self.pair.items()}
        return replace(self, pair=pair)

    def select(self, indices: Tensor) -> BatchFacts:
        """Return the facts of the pairs with the given indices."""
        pair = {name: values[indices.to(values.device)] for name, values in self.pair.items()}
        return replace(self, pair=pair)


#: The facts that a pass gets: those of its pairs; or a function that computes them if its pairs are
#: all of the global batch; None: they are all of it, and it is the first.
FactsSource = BatchFacts | Callable[[BatchTable], BatchFacts] | None


def table_columns(
    config: ObjectiveConfig, views: Mapping[str, ResponseScores], fields: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the columns of some pairs, (B,) each, in float64; none unless the scope is `scores`.

    The columns are sums of log-probabilities, such as `policy_chosen` and `reference_rejected`, and
    the fields with one number per pair.
    """
    if config.scope != "scores":
        return {}
    weights = {view: ld_token_weights(config.resolved_method, views, view) for view in _TEXT_VIEWS}
    columns = {
        f"{model}_{view}": getattr(views[view], f"{model}_sum")(weights[view])
        for model in ("policy", "reference")
        for view in _TEXT_VIEWS
    }
    numbers = {name: values for name, values in fields.items() if values.ndim == 1}
    return {name: values.detach().double() for name, values in {**columns, **numbers}.items()}


def ld_token_weights(
    method: Method | None, views: Mapping[str, ResponseScores], view: str
) -> Tensor | None:
    """Return LD-DPO's token weights, (B, T): 1 up to the shorter response's length, then alpha."""
    beyond = None if method is None else method.settings.get("ld_alpha")
    if beyond is None:
        return None
    counts = [views[name].mask.sum(-1) for name in _TEXT_VIEWS]
    scores = views[view]
    within = scores.mask.cumsum(-1) <= torch.minimum(*counts)[:, None]
    weights = torch.full_like(scores.policy_logps, float(beyond), requires_grad=False)
    return weights.masked_fill(within, 1.0) * scores.mask


def compute_batch_facts(
    config: ObjectiveConfig,
    table: BatchTable,
    state: State,
    *,
    kept: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[BatchFacts, State]:
    """Return the facts that a batch's losses read, and the state after the batch.

    Args:
        config: the objective.
        table: the batch.
        state: the state before the batch; empty at the start.
        kept: the pairs that DAMA keeps; None: draw them.
        generator: the generator of that draw.
    """
    method = config.resolved_method
    scalar: dict[str, float] = {"pairs": table.pairs, "tokens": table.tokens}
    pair: dict[str, Tensor] = {}
    next_state = dict(state)
    if method is not None and method.scope == "scores":
        sums = table.columns
        chosen = sums["policy_chosen"] - sums["reference_chosen"]
        rejected = sums["policy_rejected"] - sums["reference_rejected"]
        losses = {part.loss for part in method.parts}
        if "aot" in losses:
            margins = sums["policy_chosen"] - sums["policy_rejected"]
            reference_margins = sums["reference_chosen"] - sums["reference_rejected"]
            pair["reference_at_rank"] = _values_at_rank(reference_margins, margins)
        if "aot_unpaired" in losses:
            pair["rejected_at_rank"] = _values_at_rank(rejected, chosen)
            pair["chosen_at_rank"] = _values_at_rank(chosen, rejected)
        if method.state == "mean_reward":
            # As in TRL 0.10.1: the running mean of rewards, in which each batch counts as one.
            batches, mean = state.get("batches", 0.0), state.get("mean", 0.0)
            batch_mean = float((config.beta * (chosen + rejected) / 2).mean())
            scalar["shift"] = mean = (mean * batches + batch_mean) / (batches + 1)
            next_state = {"batches": batches + 1, "mean": mean}
        if method.state == "gap":
            gaps, previous_gap, settings = chosen - rejected, state.get("gap", 0.0), method.settings
            if kept is None:
                count = max(1, math.floor(settings["keep"] * len(gaps)))
                kept = _draw_pairs(torch.exp(-0.5 * (gaps - previous_gap) ** 2), count, generator)
            pair |= _dama_facts(config.beta, settings, gaps, table, previous_gap, sorted(set(kept)))
            momentum = settings["momentum"]
            next_state = {"gap": momentum * previous_gap + (1 - momentum) * float(gaps.mean())}
    return BatchFacts(scalar=scalar, pair=pair, table=table), next_state


def _values_at_rank(values: Tensor, ranking: Tensor) -> Tensor:
    """Return for each pair the value whose rank equals the pair's rank in `ranking`, (N,)."""
    rank = torch.argsort(torch.argsort(ranking, stable=True), stable=True)
    return values.sort().values[rank]


def _dama_facts(
    beta: float,
    settings: Mapping[str, Any],
    gaps: Tensor,
    table: BatchTable,
    previous_gap: float,
    kept_indices: list[int],
) -> dict[str, Tensor]:
    """Return DAMA's beta and weight of each pair.

    `kept_indices` are kept, `previous_gap` is the mean gap so far.
    """
    keep_weights = torch.zeros_like(gaps)
    keep_weights[kept_indices] = 1.0
    better, worse = (table.columns[name] for name in _DAMA_FIELDS)
    data_factor = torch.sigmoid(better - worse) / _sigmoid(settings["score_mean"])
    model_factor = torch.sigmoid(gaps)[kept_indices].mean() / _sigmoid(previous_gap)
    return {
        "keep": keep_weights * (len(gaps) / keep_weights.sum()),
        "beta": (beta * data_factor * model_factor).clamp(min=settings["smallest_beta"]),
    }


def _draw_pairs(weights: Tensor, count: int, generator: torch.Generator | None) -> list[int]:
    """Return pairs drawn without replacement, or uniformly with it if too few weights are > 0."""
    weights = weights.cpu()
    if int((weights > 0).sum()) < count:
        return torch.randint(len(weights), (count,), generator=generator).tolist()
    return torch.multinomial(weights, count, generator=generator).tolist()


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
