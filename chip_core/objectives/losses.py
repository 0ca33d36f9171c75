"""The losses of margins that a preset's parts compute. docs/objectives.md has the formulas.

Shapes: B pairs, T response tokens. A reward is what enters a margin: lp_π − lp_ref or a variant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chip_core.objectives.global_batch import BatchFacts, FactsSource, ld_token_weights
from chip_core.objectives.parts import VIEWS, Method, Part, view_name
from chip_core.objectives.scores import ResponseScores

Settings = Mapping[str, Any]

#: exp(·) of a larger number overflows in fp32.
_MAX_EXPONENT = 80.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the parts may read of a batch."""

    views: Mapping[str, ResponseScores]
    #: Columns of rows: `COLUMN/chosen` and the like -> (B,), or (B, T) for a response's tokens.
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    facts: FactsSource = None  # of the global batch


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The rewards of a batch's views, as a method defines them."""

    method: Method
    beta: float
    inputs: Inputs

    @property
    def facts(self) -> BatchFacts:
        """The facts of the global batch."""
        assert isinstance(self.inputs.facts, BatchFacts)
        return self.inputs.facts

    def reward(self, view: str) -> Tensor:
        """Return a view's reward, (B,)."""
        scores = self.inputs.views[view]
        kind = self.method.reward
        if kind == "log_ratio":
            return self._apply_f_divergence(scores.log_ratio(self.token_weights(view)))
        if kind == "best_other":
            if view == "chosen":
                return scores.log_ratio()
            assert scores.policy_best_other is not None
            assert scores.reference_best_other is not None
            return scores.total(scores.policy_best_other - scores.reference_best_other)
        if kind == "guided":
            return self._guided_reward(view, scores)
        policy, reference = (
            self._visual_reward(view, scores, model, multiplied=kind == "multiplied")
            for model in ("policy", "reference")
        )
        return policy - reference

    def margin(self, views: Sequence[str]) -> Tensor:
        """Return the reward of the first view minus that of the second, (B,)."""
        better, worse = map(self.reward, views)
        return better - worse

    def mean_reward(self, view: str) -> Tensor:
        """Return a view's reward per token, (B,)."""
        return self.reward(view) / self.inputs.views[view].mask.sum(-1).clamp(min=1)

    def setting(self, name: str) -> float:
        """Return a numeric setting of the method."""
        return float(self.method.settings[name])

    def _apply_f_divergence(self, ratio: Tensor) -> Tensor:
        """Return f'(π/ref) of an f-divergence, computed from the log-ratio. TRL 1.16."""
        kind = self.method.settings.get("f_divergence", "reverse_kl")
        if kind == "forward_kl":
            return 1 - torch.exp(-ratio)
        if kind == "js_divergence":
            return math.log(2) + F.logsigmoid(ratio)
        if kind == "alpha_divergence":
            power = self.setting("f_alpha") - 1
            if abs(power) >= 1e-6:  # otherwise the limit: the log-ratio itself
                return (torch.exp((power * ratio).clamp(max=_MAX_EXPONENT)) - 1) / power
        return ratio

    def token_weights(self, view: str) -> Tensor | None:
        """Return the weights of a view's tokens, (B, T); None: 1 on each."""
        return ld_token_weights(self.method, self.inputs.views, view)

    def _guided_reward(self, view: str, scores: ResponseScores) -> Tensor:
        """Return Σ [γ log p_π − (γ − 1) sg log p(blank image)] − lp_ref. V-DPO."""
        gamma = self.setting("gamma")
        if gamma == 1:
            return scores.log_ratio()
        blank = self._rejected_image_values(view, f"{self.method.settings['guidance']}_logps")
        guided = gamma * scores.policy_logps - (gamma - 1) * blank.detach()
        return scores.total(guided) - scores.reference_sum()

    def _visual_reward(
        self, view: str, scores: ResponseScores, model: str, *, multiplied: bool
    ) -> Tensor:
        """Return Σ (log p + log c), where c is how the image moves each token's logit. TPO.

        With `multiplied`, return Σ sg(c)·log p.
        """
        logits, logps = getattr(scores, f"{model}_logits"), getattr(scores, f"{model}_logps")
        # A token that is cut under the other image has no shift.
        has_shift = self._rejected_image_values(view, "mask") & scores.mask
        shift = logits - self._rejected_image_values(view, f"{model}_logits")
        shift_probability = torch.sigmoid(torch.where(has_shift, shift, torch.zeros_like(logits)))
        weight = 0.5 + shift_probability if VIEWS[view][1] == "chosen" else 1.5 - shift_probability
        if multiplied:
            return scores.total(weight.detach() * logps)
        return scores.total(logps + weight.log())

    def _rejected_image_values(self, view: str, name: str) -> Tensor:
        """Return a value of a response's tokens under the rejected image, or 0, (B, T)."""
        other = self.inputs.views[view_name("rejected_image", VIEWS[view][1])]
        values = getattr(other, name)
        masked = torch.where(other.mask, values, torch.zeros_like(values))
        return _fit_width(masked, self.inputs.views[view].mask.shape[1])


def _fit_width(values: Tensor, width: int) -> Tensor:
    """Return values of a response's tokens, truncated or zero-padded to a width."""
    return F.pad(values[:, :width], (0, max(0, width - values.shape[1])))


Loss = Callable[[Tensor, Tensor, float, Settings], Tensor]


def _preference_loss(margin: Tensor, beta: float | Tensor) -> Tensor:
    return -F.logsigmoid(beta * margin)


def _robust(up: Tensor, down: Tensor, beta: float, settings: Settings) -> Tensor:
    smoothing = float(settings["label_smoothing"])
    loss = (1 - smoothing) * _preference_loss(up - down, beta) - smoothing * _preference_loss(
        down - up, beta
    )
    return loss / (1 - 2 * smoothing)


def _exo_pair(up: Tensor, down: Tensor, beta: float, settings: Settings) -> Tensor:
    smoothing, h = settings["label_smoothing"], beta * (up - down)
    up_term = torch.sigmoid(h) * (F.logsigmoid(h) - math.log1p(-smoothing))
    return up_term + torch.sigmoid(-h) * (F.logsigmoid(-h) - math.log(smoothing))


def _discopop(up: Tensor, down: Tensor, beta: float, settings: Settings) -> Tensor:
    h = beta * (up - down)
    mix = torch.sigmoid(h / settings["tau"])
    return (1 - mix) * -F.logsigmoid(h) + mix * torch.exp(-h)


#: Losses of a better and a worse reward, `up` and `down`, (B,) each.
REWARD_LOSSES: dict[str, Loss] = {
    "sigmoid": lambda up, down, beta, _: _preference_loss(up - down, beta),
    "hinge": lambda up, down, beta, _: torch.relu(1 - beta * (up - down)),
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": lambda up, down, beta, _: (
        _preference_loss(up, beta)
        + 0.5 * _preference_loss(-up, beta)
        + 0.5 * _preference_loss(-down, beta)
    ),
    "bco_pair": lambda up, down, beta, _: (
        _preference_loss(up, beta) + _preference_loss(-down, beta)
    ),
    "sppo_hard": lambda up, down, beta, _: (up - 0.5 / beta) ** 2 + (down + 0.5 / beta) ** 2,
    "apo_zero": lambda up, down, beta, _: 1 - torch.sigmoid(beta * up) + torch.sigmoid(beta * down),
    "apo_down": lambda up, down, beta, _: (
        torch.sigmoid(beta * up) + 1 - torch.sigmoid(beta * (up - down))
    ),
    "discopop": _discopop,
    "ipo": lambda up, down, beta, _: (up - down - 1 / (2 * beta)) ** 2,
    "sigmoid_norm": lambda up, down, beta, _: _preference_loss(up - down, beta),
}

#: The losses of per-token rewards.
MEAN_REWARD_LOSSES = frozenset({"ipo", "sigmoid_norm"})


def _smoothed_loss(rewards: Rewards, margin: Tensor, beta: float) -> Tensor:
    smoothing = rewards.setting("label_smoothing")
    if not smoothing:
        return _preference_loss(margin, beta)
    return (1 - smoothing) * _preference_loss(margin, beta) + smoothing * _preference_loss(
        -margin, beta
    )


def _aot(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Compare the policy's margins with the reference's of the same rank in the global batch."""
    win, lose = (
        rewards.inputs.views[view].policy_sum(rewards.token_weights(view)) for view in part.views
    )
    return _smoothed_loss(rewards, win - lose - rewards.facts.pair["reference_at_rank"], beta)


def _aot_unpaired(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Compare chosen and rejected of the same rank in the global batch.

    A pair's value compares its chosen response with the rejected one of that rank; each response
    gets its own gradient.
    """
    up, down = map(rewards.reward, part.views)
    loss = _smoothed_loss(rewards, up - rewards.facts.pair["rejected_at_rank"], beta)
    down_loss = _smoothed_loss(rewards, rewards.facts.pair["chosen_at_rank"] - down, beta)
    return loss + (down_loss - down_loss.detach())


def _sft(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Return losses, (B,), whose mean over the global batch is −(Σ log p)/(tokens)."""
    (view,) = part.views
    facts = rewards.facts.scalar
    return -rewards.inputs.views[view].policy_sum() * (facts["pairs"] / facts["tokens"])


def _scored_beta(rewards: Rewards, beta: float) -> Tensor:
    """Return DA-DPO's beta, which grows with the gap of a pair's scores, whichever is higher."""
    fields = rewards.inputs.fields
    gap = (fields["clip_scores/chosen"] - fields["clip_scores/rejected"]).abs()
    return beta * rewards.setting("alpha") * (1 + gap)


def _position_log_ratios(rewards: Rewards, view: str) -> Tensor:
    """Return log-ratios per token, 0 beyond the response, `length` columns wide, (B, T)."""
    scores, length = rewards.inputs.views[view], int(rewards.setting("length"))
    log_ratio = scores.policy_logps - scores.reference_logps
    return _fit_width(torch.where(scores.mask, log_ratio, torch.zeros_like(log_ratio)), length)


def _token_field(rewards: Rewards, name: str, template: Tensor) -> Tensor:
    return _fit_width(rewards.inputs.fields[f"opa_scores/{name}"], template.shape[1])


def _position_losses(rewards: Rewards, part: Part, beta: float) -> Tensor:
    """Return OPA-DPO's loss: the mean over all positions of a loss of the log-ratios there."""
    better, worse = (_position_log_ratios(rewards, view) for view in part.views)
    if part.name == "anchor":  # one up and the other down, with the released code's signs
        return (2 * _preference_loss(better, beta) + 2 * _preference_loss(-worse, beta)).mean(-1)
    if part.name == "revised_over_own":
        better = _token_field(rewards, "revised_score", better) * better
        worse = _token_field(rewards, "rejected_score", worse) * worse
    margin = better - worse
    if part.name == "revised_over_masked":
        margin = _token_field(rewards, "revised_image", better) * margin
    return _preference_loss(margin, beta).mean(-1)


def _bco_pair_shift(rewards: Rewards, part: Part, beta: float) -> Tensor:
    up, down = map(rewards.reward, part.views)
    shift = rewards.facts.scalar["shift"]
    return -F.logsigmoid(beta * up - shift) - F.logsigmoid(shift - beta * down)


#: Losses of other inputs that a part declares.
INPUT_LOSSES: dict[str, Callable[[Rewards, Part, float], Tensor]] = {
    "bco_pair_shift": _bco_pair_shift,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "sft": _sft,
    # DAMA: a beta per pair; pairs that are not kept have weight 0.
    "sigmoid_kept": lambda rewards, part, _: (
        rewards.facts.pair["keep"]
        * _preference_loss(rewards.margin(part.views), rewards.facts.pair["beta"])
    ),
    "sigmoid_scored": lambda rewards, part, beta: _preference_loss(
        rewards.margin(part.views), _scored_beta(rewards, beta)
    ),
    "anchor": lambda rewards, part, beta: _preference_loss(rewards.reward(part.views[0]), beta),
    "equal_margins": lambda rewards, part, _: (
        (rewards.margin(part.views[:2]) - rewards.margin(part.views[2:])) ** 2
    ),
    "by_position": _position_losses,
}


def compute_part_losses(method: Method, beta: float, inputs: Inputs) -> dict[str, Tensor]:
    """Return each part's loss of each pair, (B,), before its weight."""
    rewards = Rewards(method=method, beta=beta, inputs=inputs)
    losses = {}
    for part in method.parts:
        part_beta = beta if part.beta is None else part.beta
        if part.loss in INPUT_LOSSES:
            losses[part.name] = INPUT_LOSSES[part.loss](rewards, part, part_beta)
        else:
            up, down = map(
                rewards.mean_reward if part.loss in MEAN_REWARD_LOSSES else rewards.reward,
                part.views,
            )
            losses[part.name] = REWARD_LOSSES[part.loss](up, down, part_beta, method.settings)
    return losses
