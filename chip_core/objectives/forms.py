"""The three forms of the objective. docs/objectives.md has the formulas and where they come from.

Shapes: B pairs. `win` is the chosen response (w), `lose` the rejected one (l), `other` the chosen
one under the rejected image (v). Δ is the policy's margin less the reference's, D = Σ_t
KL(reference || policy), sg stop-gradient.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from chip_core.objectives.config import ObjectiveConfig
from chip_core.objectives.custom import computed
from chip_core.objectives.global_batch import BatchFacts, BatchTable, batch_facts, table_columns
from chip_core.objectives.losses import Inputs, part_losses
from chip_core.objectives.terms import BatchObjective, ResponseScores


def batch_objective(
    config: ObjectiveConfig,
    *,
    chosen: ResponseScores,
    rejected: ResponseScores,
    rejected_image: ResponseScores | None,
    inputs: Inputs | None = None,
) -> BatchObjective:
    """Return the objective of each pair, a sum of terms.

    Args:
        config: the objective.
        chosen: the chosen response under the image.
        rejected: the rejected response under the image.
        rejected_image: the chosen response under the rejected image; None without a visual term.
        inputs: what terms of a user's own read besides.
    """
    assert rejected_image is not None or not config.needs_rejected_image
    if config.form == "paper":
        if inputs is None:
            views = {"chosen": chosen, "rejected": rejected, "rejected_image": rejected_image}
            inputs = Inputs(views={name: of for name, of in views.items() if of is not None})
        return _paper(config, chosen, rejected, rejected_image, inputs)
    if config.form == "one_sigmoid":
        return _one_sigmoid(config, chosen, rejected, rejected_image)
    return _released(config, chosen, rejected, rejected_image)


def objective_of(config: ObjectiveConfig, inputs: Inputs) -> BatchObjective:
    """Return the objective of each pair, whatever it reads.

    Args:
        config: the objective.
        inputs: all that it declares. Without facts, its pairs are the first global batch.
    """
    views, method = inputs.views, config.resolved_method
    if config.scope is not None:
        inputs = replace(inputs, facts=_facts(config, inputs))
    if method is None:
        return batch_objective(
            config,
            chosen=views["chosen"],
            rejected=views["rejected"],
            rejected_image=views.get("rejected_image"),
            inputs=inputs,
        )
    terms = part_losses(method, config.beta, inputs)
    weighted = [part.weight * terms[part.name] for part in method.parts if part.weight]
    for name in config.active_custom:
        terms[name] = computed(name, inputs, config.beta)
        weighted.append(config.custom[name] * terms[name])
    rewards = {
        view: (config.beta * views[view].log_ratio()).detach()
        for view in ("chosen", "rejected")
        if all(
            "logps" in reads.get(view, ())
            for reads in (config.policy_reads, config.reference_reads)
        )
    }
    return BatchObjective(
        loss=torch.stack(weighted).sum(0),
        terms=terms,
        chosen_reward=rewards.get("chosen"),
        rejected_reward=rewards.get("rejected"),
    )


def _facts(config: ObjectiveConfig, inputs: Inputs) -> BatchFacts:
    """Return what is known of the global batch, made here where these pairs are all of it."""
    chosen, facts = inputs.views["chosen"], inputs.facts
    if not isinstance(facts, BatchFacts):
        table = BatchTable(
            tokens=int(chosen.mask.sum()),
            pairs=len(chosen.mask),
            columns=table_columns(config, inputs.views, inputs.fields),
        )
        facts = batch_facts(config, table, {})[0] if facts is None else facts(table)
    return facts.to(chosen.policy_logps.dtype)


def _paper(
    config: ObjectiveConfig,
    win: ResponseScores,
    lose: ResponseScores,
    other: ResponseScores | None,
    inputs: Inputs,
) -> BatchObjective:
    """L = w_r(−log σ βΔ_r) + λ(−log σ βΔ_s) + w_v(−log σ βΔ_v) + γT, a sum of separate losses.

    Source: CHiP paper, section 3; the anchor: mDPO, section 3. `terms`: each loss, unweighted.
    """
    mean = config.average_logps
    terms: dict[str, Tensor] = {}
    for term in config.active_terms:
        beta = config.beta_of(term)
        if term == "response":
            margin = win.log_ratio(average=mean) - lose.log_ratio(average=mean)
            terms[term] = -F.logsigmoid(beta * margin)
        elif term == "segment":
            per_token = mean or config.segment.normalize == "changed_tokens"
            sums = [
                side.log_ratio(side.token_weights(0, 1), average=per_token) for side in (win, lose)
            ]
            loss = -F.logsigmoid(beta * (sums[0] - sums[1]))
            # Nothing changed: nothing is preferred, so 0 and not log 2.
            terms[term] = torch.where(
                win.any_changed | lose.any_changed, loss, torch.zeros_like(loss)
            )
        elif term == "token":
            gap = lose.divergence() - win.divergence().detach()
            linear = config.token.form == "linear"
            terms[term] = beta * gap if linear else -F.logsigmoid(-beta * gap)
        elif term == "visual":
            assert other is not None
            margin = win.log_ratio(average=mean) - other.log_ratio(average=mean)
            terms[term] = -F.logsigmoid(beta * margin)
        else:
            assert term == "anchor"
            reward = beta * win.log_ratio(average=mean)
            terms[term] = -F.logsigmoid(reward - config.anchor.delta)
    weighted = [config.weight(term) * terms[term] for term in config.active_terms]
    for name in config.active_custom:
        terms[name] = computed(name, inputs, config.beta)
        weighted.append(config.custom[name] * terms[name])
    chosen_reward, rejected_reward = _rewards(config, win, lose)
    return BatchObjective(
        loss=torch.stack(weighted).sum(0),
        terms=terms,
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
    )


def _one_sigmoid(
    config: ObjectiveConfig, win: ResponseScores, lose: ResponseScores, other: ResponseScores | None
) -> BatchObjective:
    """−log σ(β[w_rΔ_r + λΔ_s + w_vΔ_v − γ(D_l − sg D_w)]), Δ_v weighted 1 + λ on changed tokens.

    Source: the released code, its visual reference weighted like the policy. `terms`: what each
    active term adds inside the sigmoid.
    """
    mean, lam = config.average_logps, config.weight("segment")
    parts: dict[str, Tensor] = {}
    for term in config.active_terms:
        beta = config.beta_of(term)
        if term == "response" and mean:
            # Response and segment are one weighted mean here, as one weighted sum there.
            of_w, of_l = (side.token_weights(config.weight(term), lam) for side in (win, lose))
            parts[term] = beta * (
                win.log_ratio(of_w, average=True) - lose.log_ratio(of_l, average=True)
            )
        elif term == "response":
            parts[term] = beta * config.weight(term) * (win.log_ratio() - lose.log_ratio())
        elif term == "segment":
            if mean and "response" in parts:
                continue
            of_w, of_l = (side.token_weights(0, 1) for side in (win, lose))
            gap = win.log_ratio(of_w, average=mean) - lose.log_ratio(of_l, average=mean)
            parts[term] = beta * lam * gap
        elif term == "token":
            gap = lose.divergence() - win.divergence().detach()
            parts[term] = -beta * config.weight(term) * gap
        else:
            assert term == "visual" and other is not None
            on = win.token_weights(1, lam)
            gap = win.log_ratio(on, average=mean) - other.log_ratio(on, average=mean)
            parts[term] = beta * config.weight(term) * gap
    chosen_reward, rejected_reward = _rewards(config, win, lose)
    return BatchObjective(
        loss=-F.logsigmoid(torch.stack(list(parts.values())).sum(0)),
        terms=parts,
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
    )


def _released(
    config: ObjectiveConfig, win: ResponseScores, lose: ResponseScores, other: ResponseScores | None
) -> BatchObjective:
    """`one_sigmoid` as the released code computes it for one pair at a time.

    Where tokens are weighted, its reference log-probability under the rejected image is first
    summed over the response, unweighted, and that sum then multiplied by each token's weight:
    (Σ_t log p)·(Σ_t weight). Rewards hold the divergence. Source: LVUGAI/CHiP at e7f5193.
    """
    beta, lam = config.beta, config.weight("segment")
    of_w, of_l = win.token_weights(1, lam), lose.token_weights(1, lam)
    chosen, rejected = win.log_ratio(of_w), lose.log_ratio(of_l)
    parts = {"response": beta * (chosen - rejected)}
    if "visual" in config.active_terms:
        assert other is not None
        reference = other.reference_sum()
        if lam:
            reference = reference * of_w.sum(-1)
        policy_gap = win.policy_sum(of_w) - other.policy_sum(of_w)
        parts["visual"] = beta * (policy_gap - (win.reference_sum(of_w) - reference))
    if "token" in config.active_terms:
        chosen_kl, rejected_kl = win.divergence(), lose.divergence()
        parts["token"] = -beta * config.weight("token") * (rejected_kl - chosen_kl.detach())
        chosen, rejected = chosen + chosen_kl, rejected + rejected_kl
    return BatchObjective(
        loss=-F.logsigmoid(torch.stack(list(parts.values())).sum(0)),
        terms=parts,
        chosen_reward=(beta * chosen).detach(),
        rejected_reward=(beta * rejected).detach(),
    )


def _rewards(
    config: ObjectiveConfig, win: ResponseScores, lose: ResponseScores
) -> tuple[Tensor, Tensor]:
    """Return β(lp_policy − lp_reference) of the chosen and the rejected response, (B,) each."""
    beta, mean = config.beta_of("response"), config.average_logps
    rewards = (beta * side.log_ratio(average=mean) for side in (win, lose))
    chosen, rejected = (reward.detach() for reward in rewards)
    return chosen, rejected
