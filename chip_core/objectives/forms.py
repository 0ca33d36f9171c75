"""The three forms of the objective. docs/objectives.md has the formulas and their sources.

Shapes: B pairs. `win` is the chosen response (w), `lose` the rejected one (l), `other` the chosen
one under the rejected image (v). Δ is the policy's margin minus the reference's, D = Σ_t
KL(reference || policy), sg stop-gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chip_core.objectives.config import ObjectiveConfig, Term
from chip_core.objectives.custom import compute_custom_loss
from chip_core.objectives.global_batch import (
    BatchFacts,
    BatchTable,
    compute_batch_facts,
    table_columns,
)
from chip_core.objectives.losses import Inputs, compute_part_losses
from chip_core.objectives.scores import ResponseScores

Views = Mapping[str, ResponseScores]


@dataclass(frozen=True, kw_only=True)
class BatchObjective:
    """The objective of a batch, before the mean over pairs."""

    loss: Tensor  # (B,)
    terms: dict[str, Tensor]  # active term -> (B,); its meaning depends on the form
    chosen_reward: Tensor | None  # (B,); None if the objective does not read its inputs
    rejected_reward: Tensor | None  # (B,)


def compute_objective(config: ObjectiveConfig, inputs: Inputs) -> BatchObjective:
    """Return the objective of each pair.

    Args:
        config: the objective.
        inputs: everything that it declares. Without facts, these pairs are the first global batch.
    """
    views, method = inputs.views, config.resolved_method
    assert "rejected_image" in views or not config.needs_rejected_image or method is not None
    if config.scope is not None:
        inputs = replace(inputs, facts=_resolve_facts(config, inputs))
    rewards: tuple[Tensor | None, ...] = ()
    if method is not None:
        terms = compute_part_losses(method, config.beta, inputs)
        weights = {part.name: part.weight for part in method.parts}
    elif config.form == "released":
        terms, rewards = _released_summands(config, views)
    else:
        terms = (_paper_losses if config.form == "paper" else _sigmoid_summands)(config, views)
        weights = {term: config.weight(term) for term in config.active_terms}
    if method is None and config.form != "paper":
        loss = -F.logsigmoid(torch.stack(list(terms.values())).sum(0))
    else:  # a sum of losses
        for name in config.active_custom:
            terms[name], weights[name] = (
                compute_custom_loss(name, inputs, config.beta),
                config.custom[name],
            )
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum(0)
    chosen_reward, rejected_reward = rewards or _compute_rewards(config, views)
    return BatchObjective(
        loss=loss, terms=terms, chosen_reward=chosen_reward, rejected_reward=rejected_reward
    )


def _resolve_facts(config: ObjectiveConfig, inputs: Inputs) -> BatchFacts:
    """Return the facts of the global batch; compute them here if these pairs are all of it."""
    chosen, facts = inputs.views["chosen"], inputs.facts
    if not isinstance(facts, BatchFacts):
        table = BatchTable(
            tokens=int(chosen.mask.sum()),
            pairs=len(chosen.mask),
            columns=table_columns(config, inputs.views, inputs.fields),
        )
        facts = compute_batch_facts(config, table, {})[0] if facts is None else facts(table)
    return facts.to(chosen.policy_logps.dtype)


def _term_margin(config: ObjectiveConfig, term: Term, views: Views) -> Tensor:
    """Return the factor of a term's beta, (B,): Δ, sg D_w − D_l, or the anchor's reward."""
    win, lose, average = views["chosen"], views["rejected"], config.average_logps
    if term == "token":
        return win.divergence().detach() - lose.divergence()
    if term == "anchor":
        return win.log_ratio(average=average)
    is_one_sigmoid, lam = config.form == "one_sigmoid", config.weight("segment")
    responses = (win, views["rejected_image"] if term == "visual" else lose)
    weights: list[Tensor | None] = [None, None]
    if term == "segment":
        average = average or config.segment.normalize == "changed_tokens"
        weights = [response.token_weights(0, 1) for response in responses]
    elif is_one_sigmoid and term == "visual":
        weights = [win.token_weights(1, lam)] * 2
    elif is_one_sigmoid and average:
        # here one weighted mean of response and segment, otherwise one weighted sum
        weights = [response.token_weights(config.weight(term), lam) for response in responses]
    better, worse = (
        response.log_ratio(weight, average=average)
        for response, weight in zip(responses, weights, strict=True)
    )
    return better - worse


def _paper_losses(config: ObjectiveConfig, views: Views) -> dict[str, Tensor]:
    """Return the unweighted losses in w_r(−log σ βΔ_r) + λ(−log σ βΔ_s) + w_v(−log σ βΔ_v) + γT.

    Source: CHiP paper, section 3; the anchor: mDPO, section 3.
    """
    terms: dict[str, Tensor] = {}
    for term in config.active_terms:
        margin = config.term_beta(term) * _term_margin(config, term, views)
        if term == "anchor":
            margin = margin - config.anchor.delta
        linear = term == "token" and config.token.form == "linear"
        loss = -margin if linear else -F.logsigmoid(margin)
        if term == "segment":  # without changed tokens nothing is preferred: 0, not log 2
            changed = views["chosen"].any_changed | views["rejected"].any_changed
            loss = torch.where(changed, loss, torch.zeros_like(loss))
        terms[term] = loss
    return terms


def _sigmoid_summands(config: ObjectiveConfig, views: Views) -> dict[str, Tensor]:
    """Return each summand within −log σ(β[w_rΔ_r + λΔ_s + w_vΔ_v − γ(D_l − sg D_w)]).

    Δ_v is weighted 1 + λ on changed tokens. Source: the released code, with its visual reference
    weighted like the policy.
    """
    active = config.active_terms
    # Response and segment are merged: see `_term_margin`.
    merges_segment = config.average_logps and "response" in active
    return {
        term: (
            config.term_beta(term)
            * (1 if merges_segment and term == "response" else config.weight(term))
        )
        * _term_margin(config, term, views)
        for term in active
        if not (merges_segment and term == "segment")
    }


def _released_summands(
    config: ObjectiveConfig, views: Views
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Compute `one_sigmoid` as the released code does for one pair at a time.

    If tokens are weighted, it first sums the reference log-probability under the rejected image
    over the response, unweighted, and then multiplies that sum by each token's weight:
    (Σ_t log p)·(Σ_t weight). Rewards include the divergence. Source: LVUGAI/CHiP at e7f5193.
    """
    win, lose = views["chosen"], views["rejected"]
    beta, lam = config.beta, config.weight("segment")
    chosen_weights, rejected_weights = win.token_weights(1, lam), lose.token_weights(1, lam)
    chosen, rejected = win.log_ratio(chosen_weights), lose.log_ratio(rejected_weights)
    summands = {"response": beta * (chosen - rejected)}
    if "visual" in config.active_terms:
        other = views["rejected_image"]
        reference = other.reference_sum()
        if lam:
            reference = reference * chosen_weights.sum(-1)
        policy_gap = win.policy_sum(chosen_weights) - other.policy_sum(chosen_weights)
        summands["visual"] = beta * (policy_gap - (win.reference_sum(chosen_weights) - reference))
    if "token" in config.active_terms:
        chosen_kl, rejected_kl = win.divergence(), lose.divergence()
        summands["token"] = -beta * config.weight("token") * (rejected_kl - chosen_kl.detach())
        chosen, rejected = chosen + chosen_kl, rejected + rejected_kl
    return summands, ((beta * chosen).detach(), (beta * rejected).detach())


def _compute_rewards(config: ObjectiveConfig, views: Views) -> tuple[Tensor | None, ...]:
    """Return β(lp_policy − lp_reference) of chosen and rejected, (B,); None if it is not read."""
    beta = config.term_beta("response") if config.method_name is None else config.beta
    average = config.average_logps
    reads = (config.policy_reads, config.reference_reads)
    return tuple(
        (beta * views[view].log_ratio(average=average)).detach()
        if all("logps" in reads_by_view.get(view, ()) for reads_by_view in reads)
        else None
        for view in ("chosen", "rejected")
    )
