"""Losses of margins: what a part of a preset computes. docs/objectives.md has the formulas.

Shapes: B pairs, T response tokens. A reward is what enters a margin: lp_π − lp_ref and its like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from chip_core.objectives.global_batch import BatchFacts, Facts, lead_weights
from chip_core.objectives.parts import VIEWS, Method, Part, view_of
from chip_core.objectives.terms import ResponseScores

#: exp(·) of more than this is no number in single precision.
_LARGEST = 80.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a batch's parts may read."""

    views: Mapping[str, ResponseScores]
    #: Of rows: `COLUMN/chosen` and its like -> (B,), or (B, T) of a response's tokens.
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Facts = None  # of the global batch


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The rewards of a batch's views, as a method takes them."""

    method: Method
    beta: float
    inputs: Inputs

    @property
    def facts(self) -> BatchFacts:
        """What is known of the global batch."""
        assert isinstance(self.inputs.facts, BatchFacts)
        return self.inputs.facts

    def of(self, view: str) -> Tensor:
        """Return a view's reward, (B,)."""
        scores = self.inputs.views[view]
        kind = self.method.reward
        if kind == "log_ratio":
            return self._diverged(scores.log_ratio(self.lead(view)))
        if kind == "best_other":
            if view == "chosen":
                return scores.log_ratio()
            assert scores.policy_best_other is not None
            assert scores.reference_best_other is not None
            return scores.total(scores.policy_best_other - scores.reference_best_other)
        if kind == "guided":
            return self._guided(view, scores)
        policy, reference = (
            self._seen(view, scores, who, multiplied=kind == "multiplied")
            for who in ("policy", "reference")
        )
        return policy - reference

    def pair(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return the rewards of a part's better and worse view, (B,) each."""
        better, worse = part.views
        return self.of(better), self.of(worse)

    def means(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return the same, each divided by the response's tokens."""
        better, worse = (
            self.of(view) / self.inputs.views[view].mask.sum(-1).clamp(min=1) for view in part.views
        )
        return better, worse

    def setting(self, name: str) -> float:
        """Return a setting of the method, a number."""
        return float(self.method.settings[name])

    def _diverged(self, ratio: Tensor) -> Tensor:
        """Return f'(π/ref) of an f-divergence, of the log-ratio. TRL 1.16."""
        kind = self.method.settings.get("f_divergence", "reverse_kl")
        if kind == "forward_kl":
            return 1 - torch.exp(-ratio)
        if kind == "js_divergence":
            return math.log(2) + F.logsigmoid(ratio)
        if kind == "alpha_divergence":
            power = self.setting("f_alpha") - 1
            if abs(power) >= 1e-6:  # else its limit: the log-ratio itself
                return (torch.exp((power * ratio).clamp(max=_LARGEST)) - 1) / power
        return ratio

    def lead(self, view: str) -> Tensor | None:
        """Return the weights of a view's tokens, (B, T); None: 1 on each."""
        return lead_weights(self.method, self.inputs.views, view)

    def _guided(self, view: str, scores: ResponseScores) -> Tensor:
        """Return Σ [γ log p_π − (γ − 1) sg log p(blank image)] − lp_ref. V-DPO."""
        gamma = self.setting("gamma")
        if gamma == 1:
            return scores.log_ratio()
        other = self.inputs.views[_twin(view)]
        blank = other.policy_logps
        if self.method.settings["guidance"] == "reference":
            blank = other.reference_logps
        blank = _fitted(torch.where(other.mask, blank, torch.zeros_like(blank)), scores.mask)
        guided = gamma * scores.policy_logps - (gamma - 1) * blank.detach()
        return scores.total(guided) - scores.reference_sum()

    def _seen(self, view: str, scores: ResponseScores, who: str, *, multiplied: bool) -> Tensor:
        """Return Σ (log p + log c), c from how the image moves each token's logit. TPO.

        With `multiplied` Σ sg(c)·log p.
        """
        other = self.inputs.views[_twin(view)]
        logits, without = getattr(scores, f"{who}_logits"), getattr(other, f"{who}_logits")
        logps = scores.policy_logps if who == "policy" else scores.reference_logps
        without = torch.where(other.mask, without, torch.zeros_like(without))
        # A token that is cut under the other image moves nowhere.
        there = _fitted(other.mask, scores.mask) & scores.mask
        gap = torch.where(there, logits - _fitted(without, scores.mask), torch.zeros_like(logits))
        seen = torch.sigmoid(gap)
        weight = 0.5 + seen if VIEWS[view][1] == "chosen" else 1.5 - seen
        if multiplied:
            return scores.total(weight.detach() * logps)
        return scores.total(logps + weight.log())


def _twin(view: str) -> str:
    """Return the same response under the rejected image."""
    return view_of("rejected_image", VIEWS[view][1])


def _fitted(values: Tensor, mask: Tensor) -> Tensor:
    """Return values of one response as wide as another mask of it, cut or filled with 0."""
    width = mask.shape[1]
    return F.pad(values[:, :width], (0, max(0, width - values.shape[1])))


def _prefer(margin: Tensor, beta: float | Tensor) -> Tensor:
    return -F.logsigmoid(beta * margin)


def _sigmoid(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return _prefer(better - worse, beta)


def _hinge(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return torch.relu(1 - beta * (better - worse))


def _ipo(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.means(part)
    return (better - worse - 1 / (2 * beta)) ** 2


def _sigmoid_norm(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.means(part)
    return _prefer(better - worse, beta)


def _robust(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    flipped, margin = rewards.setting("label_smoothing"), better - worse
    clean = (1 - flipped) * _prefer(margin, beta) - flipped * _prefer(-margin, beta)
    return clean / (1 - 2 * flipped)


def _exo_pair(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    smooth, h = rewards.setting("label_smoothing"), beta * (better - worse)
    won = torch.sigmoid(h) * (F.logsigmoid(h) - math.log1p(-smooth))
    return won + torch.sigmoid(-h) * (F.logsigmoid(-h) - math.log(smooth))


def _nca_pair(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return _prefer(better, beta) + 0.5 * _prefer(-better, beta) + 0.5 * _prefer(-worse, beta)


def _bco_pair(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return _prefer(better, beta) + _prefer(-worse, beta)


def _bco_pair_shift(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    shift = rewards.facts.scalar["shift"]
    return -F.logsigmoid(beta * better - shift) - F.logsigmoid(shift - beta * worse)


def _sppo_hard(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return (better - 0.5 / beta) ** 2 + (worse + 0.5 / beta) ** 2


def _apo_zero(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return 1 - torch.sigmoid(beta * better) + torch.sigmoid(beta * worse)


def _apo_down(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    return torch.sigmoid(beta * better) + 1 - torch.sigmoid(beta * (better - worse))


def _discopop(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = rewards.pair(part)
    h = beta * (better - worse)
    turned = torch.sigmoid(h / rewards.setting("tau"))
    return (1 - turned) * -F.logsigmoid(h) + turned * torch.exp(-h)


def _smooth(rewards: Rewards, margin: Tensor, beta: float) -> Tensor:
    flipped = rewards.setting("label_smoothing")
    if not flipped:
        return _prefer(margin, beta)
    return (1 - flipped) * _prefer(margin, beta) + flipped * _prefer(-margin, beta)


def _aot(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Compare the policy's margins with the reference's of the same rank in the global batch."""
    win, lose = (rewards.inputs.views[view] for view in part.views)
    weights = [rewards.lead(view) for view in part.views]
    margin = win.policy_sum(weights[0]) - lose.policy_sum(weights[1])
    return _smooth(rewards, margin - rewards.facts.pair["reference_at_rank"], beta)


def _aot_unpaired(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Compare chosen and rejected of the same rank in the global batch.

    Each pair's value is that of its chosen response and the rejected one of its rank; both
    responses' gradients are their own.
    """
    better, worse = rewards.pair(part)
    loss = _smooth(rewards, better - rewards.facts.pair["rejected_at_rank"], beta)
    of_worse = _smooth(rewards, rewards.facts.pair["chosen_at_rank"] - worse, beta)
    return loss + (of_worse - of_worse.detach())


def _sft(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Return what has −(Σ log p)/(tokens) over the global batch for its mean."""
    (view,) = part.views
    facts = rewards.facts.scalar
    return -rewards.inputs.views[view].policy_sum() * (facts["pairs"] / facts["tokens"])


def _sigmoid_kept(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """DAMA: a pair's own beta; pairs that are not kept weigh 0."""
    better, worse = rewards.pair(part)
    facts = rewards.facts.pair
    return facts["keep"] * _prefer(better - worse, facts["beta"])


def _sigmoid_scored(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """DA-DPO: a pair's beta grows with the gap of its scores, whichever is higher."""
    better, worse = rewards.pair(part)
    fields = rewards.inputs.fields
    gap = (fields["clip_scores/chosen"] - fields["clip_scores/rejected"]).abs()
    return _prefer(better - worse, beta * rewards.setting("alpha") * (1 + gap))


def _anchor(rewards: Rewards, part: Part, beta: float) -> Tensor:
    (view,) = part.views
    return _prefer(rewards.of(view), beta)


def _equal_margins(rewards: Rewards, part: Part, beta: float) -> Tensor:
    one, two, three, four = (rewards.of(view) for view in part.views)
    return ((one - two) - (three - four)) ** 2


def _positions(rewards: Rewards, view: str) -> Tensor:
    """Return log-ratios token by token, 0 beyond the response, as wide as is asked, (B, T)."""
    scores, length = rewards.inputs.views[view], int(rewards.setting("length"))
    gap = scores.policy_logps - scores.reference_logps
    gap = torch.where(scores.mask, gap, torch.zeros_like(gap))
    return F.pad(gap[:, :length], (0, max(0, length - gap.shape[1])))


def _token_field(rewards: Rewards, name: str, like: Tensor, beyond: float) -> Tensor:
    values = rewards.inputs.fields[f"opa_scores/{name}"][:, : like.shape[1]]
    return F.pad(values, (0, like.shape[1] - values.shape[1]), value=beyond)


def _by_position(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = (_positions(rewards, view) for view in part.views)
    return _prefer(better - worse, beta).mean(-1)


def _revised_over_own(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = (_positions(rewards, view) for view in part.views)
    up = _token_field(rewards, "revised_score", better, 0.0)
    down = _token_field(rewards, "rejected_score", worse, 0.0)
    return _prefer(up * better - down * worse, beta).mean(-1)


def _revised_over_masked(rewards: Rewards, part: Part, beta: float) -> Tensor:
    better, worse = (_positions(rewards, view) for view in part.views)
    weight = _token_field(rewards, "revised_image", better, 0.0)
    return _prefer(weight * (better - worse), beta).mean(-1)


def _opposed_anchors(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Return 2ℓ(βρ) of one response and 2ℓ(−βρ) of the other, as the released code signs them."""
    up, down = (_positions(rewards, view) for view in part.views)
    return (2 * _prefer(up, beta) + 2 * _prefer(-down, beta)).mean(-1)


Loss = Callable[[Rewards, Part, float], Tensor]

#: Name of a part's loss -> what computes it of each pair, (B,), before its weight.
LOSSES: dict[str, Loss] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "bco_pair_shift": _bco_pair_shift,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sft": _sft,
    "sigmoid_kept": _sigmoid_kept,
    "sigmoid_scored": _sigmoid_scored,
    "anchor": _anchor,
    "equal_margins": _equal_margins,
    "by_position": _by_position,
    "revised_over_own": _revised_over_own,
    "revised_over_masked": _revised_over_masked,
    "opposed_anchors": _opposed_anchors,
}


def part_losses(method: Method, beta: float, inputs: Inputs) -> dict[str, Tensor]:
    """Return each part's loss of each pair, (B,), before its weight."""
    rewards = Rewards(method=method, beta=beta, inputs=inputs)
    return {
        part.name: LOSSES[part.loss](rewards, part, beta if part.beta is None else part.beta)
        for part in method.parts
    }
