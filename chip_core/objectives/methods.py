"""The presets that are sums of losses of margins, one row each. docs/objectives.md has sources.

A row lists the settings of a preset with their defaults, and builds its method. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import model_validator

from chip_core.config.fields import Section, figure
from chip_core.objectives.parts import Method, Part, Quantity, Reads, Scope

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

#: Losses of the four sequence log-probabilities, by TRL's names.
SEQUENCE_LOSSES = (
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
)  # fmt: skip

#: The losses that another f-divergence is defined for: β log Z cancels only in a difference.
_OF_DIFFERENCE = {
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
}  # fmt: skip


class MethodConfig(Section):
    """Settings of presets that are sums of losses of margins; null: the preset's own value."""

    losses: dict[str, float] | None = figure(
        None, doc="losses by TRL's names -> their weights, in place of the preset's"
    )
    label_smoothing: float | None = figure(
        None, ge=0, lt=0.5, doc="of robust, exo_pair, aot and aot_unpaired"
    )
    tau: float | None = figure(None, gt=0, doc="of discopop: where it turns")
    f_divergence: FDivergence | None = figure(None, doc="what is kept near: of TRL's losses")
    f_alpha: float | None = figure(None, doc="of alpha_divergence")
    ld_alpha: float | None = figure(
        None, ge=0, le=1, doc="weight of tokens beyond the shorter response's length"
    )
    shift: bool | None = figure(None, doc="of bco_pair: subtract the running mean of rewards")
    symmetric: float | None = figure(None, ge=0, doc="symmpo: weight of the symmetric preferences")
    second_beta: float | None = figure(None, gt=0, doc="symmpo: temperature of the second anchor")
    consistency: float | None = figure(None, ge=0, doc="symmpo: weight of the equal margins")
    token_weights: Literal["added", "multiplied"] | None = figure(
        None, doc="tpo: 'added': log c is added to log p; 'multiplied': c times log p"
    )
    gamma: float | None = figure(None, ge=0, doc="vdpo: how strongly the image guides; 1: not")
    guidance: Literal["policy", "reference"] | None = figure(
        None, doc="vdpo: whose log-probability without the image"
    )
    keep: float | None = figure(None, gt=0, le=1, doc="dama: share of the batch that is kept")
    score_mean: float | None = figure(
        None, doc="dama: mean score of the data, chosen less rejected"
    )
    momentum: float | None = figure(None, ge=0, lt=1, doc="dama: of the running mean of gaps")
    smallest_beta: float | None = figure(None, gt=0, doc="dama: no pair's beta is below it")
    alpha: float | None = figure(None, gt=0, doc="dadpo: what the scores' weight is multiplied by")
    length: int | None = figure(None, ge=1, doc="opadpo: positions that responses are padded to")
    masked: float | None = figure(None, ge=0, doc="opadpo: weight of the masked image's terms")

    @model_validator(mode="after")
    def _known_losses(self) -> MethodConfig:
        for name, weight in (self.losses or {}).items():
            if name not in SEQUENCE_LOSSES:
                raise ValueError(f"losses: '{name}' is none of {', '.join(SEQUENCE_LOSSES)}")
            if weight < 0:
                raise ValueError(f"losses: the weight of '{name}' is negative: use 0 or more")
        if self.losses is not None and not any(self.losses.values()):
            raise ValueError("losses: none has a weight above 0: name one")
        return self


Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A preset."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # those it has, with its defaults
    make: Callable[[Settings], Method]
    #: Returns why its settings are invalid; None if they are valid.
    refused: Callable[[Settings], str | None] = lambda _: None


def resolve(row: Row, config: MethodConfig) -> Settings:
    """Return a preset's settings, with its defaults where none is given."""
    given = {name: getattr(config, name) for name in row.settings}
    return {name: row.settings[name] if value is None else value for name, value in given.items()}


def _reads(*views: str, what: Quantity = "logps") -> Reads:
    return {view: frozenset([what]) for view in views}


def _method(settings: Settings, *parts: Part, reads: Reads | None = None, **more: Any) -> Method:
    """Return the parts with a nonzero weight; policy and reference are read as their views need."""
    kept = tuple(part for part in parts if part.weight)
    both = _reads(*(view for part in kept for view in part.views)) if reads is None else reads
    return Method(
        **{"parts": kept, "settings": settings, "policy": both, "reference": both, **more}
    )


def _response(loss: str = "sigmoid") -> Part:
    return Part(name="response", loss=loss)


def _sequence(settings: Settings) -> Method:
    """Return a weighted sum of losses of the four sequence log-probabilities."""
    losses = {name: weight for name, weight in settings["losses"].items() if weight > 0}
    kept = {"losses": losses}
    needed: dict[str, set[str]] = {
        "label_smoothing": {"robust", "exo_pair", "aot", "aot_unpaired"},
        "tau": {"discopop"},
        "shift": {"bco_pair"},
    }
    kept |= {name: settings[name] for name, of in needed.items() if of & set(losses)}
    if set(losses) != {"sft"}:
        kept |= {name: settings[name] for name in ("f_divergence", "ld_alpha")}
    if settings["f_divergence"] == "alpha_divergence":
        kept["f_alpha"] = settings["f_alpha"]
    shifted = bool(kept.get("shift"))
    scope: Scope | None = "tokens" if "sft" in losses else None
    if shifted or {"aot", "aot_unpaired"} & set(losses):
        scope = "scores"
    parts = [
        Part(
            name=name,
            loss="bco_pair_shift" if name == "bco_pair" and shifted else name,
            views=("chosen",) if name == "sft" else ("chosen", "rejected"),
            weight=weight,
        )
        for name, weight in losses.items()
    ]
    reference: dict[str, Reads] = {"reference": {}} if set(losses) == {"sft"} else {}
    state = "mean_reward" if shifted else None
    return _method(kept, *parts, scope=scope, state=state, **reference)


def _sequence_refused(settings: Settings) -> str | None:
    losses = {name for name, weight in settings["losses"].items() if weight > 0}
    divergence = settings["f_divergence"]
    if "exo_pair" in losses and settings["label_smoothing"] == 0:
        return "exo_pair takes a label_smoothing above 0: 0.001 is its paper's"
    if divergence != "reverse_kl" and not losses <= _OF_DIFFERENCE:
        wrong = ", ".join(sorted(losses - _OF_DIFFERENCE))
        return f"f_divergence {divergence} has no meaning in {wrong}: use {sorted(_OF_DIFFERENCE)}"
    return None


def _of(losses: dict[str, float], **own: Any) -> Row:
    settings = {
        "losses": losses, "label_smoothing": 0.0, "tau": 0.05, "f_divergence": "reverse_kl",
        "f_alpha": 0.5, "ld_alpha": None, "shift": False,
    }  # fmt: skip
    return Row(settings={**settings, **own}, make=_sequence, refused=_sequence_refused)


def _tpo(settings: Settings) -> Method:
    reads: dict[str, frozenset[Quantity]] = {
        **dict.fromkeys(("chosen", "rejected"), frozenset[Quantity](["logps", "logits"])),
        **_reads("rejected_image", "rejected_image_rejected", what="logits"),
    }
    reward = "visual_weights" if settings["token_weights"] == "added" else "multiplied"
    return _method(settings, _response(), reads=reads, reward=reward)


def _vdpo(settings: Settings) -> Method:
    blank = _reads("rejected_image", "rejected_image_rejected")
    if settings["gamma"] == 1:  # without guidance it is dpo: the blank image is not used
        blank = {}
    who = settings["guidance"]
    reads = {who: {**_reads("chosen", "rejected"), **blank}}
    return _method(settings, _response(), reward="guided", **reads)


def _rdpo_released(settings: Settings) -> Method:
    others = _reads("rejected", "rejected_image", what="best_other")
    visual = Part(name="visual", loss="sigmoid", views=("chosen", "rejected_image"))
    reads = {**_reads("chosen"), **others}
    return _method(settings, _response(), visual, reads=reads, reward="best_other")


def _symmpo(settings: Settings) -> Method:
    first, second = ("chosen", "other"), ("second_image_other", "second_image")
    beta, weight, equal = (settings[name] for name in ("second_beta", "symmetric", "consistency"))
    return _method(
        settings,
        _response(),
        Part(name="symmetric_1", loss="sigmoid", views=first, weight=weight),
        Part(name="symmetric_2", loss="sigmoid", views=second, weight=weight),
        Part(name="anchor_1", loss="anchor", views=("chosen",)),
        Part(name="anchor_2", loss="anchor", views=("second_image_other",), beta=beta),
        Part(name="margin_consistency", loss="equal_margins", views=first + second, weight=equal),
    )


def _opadpo(settings: Settings) -> Method:
    parts = {  # name -> views, weight
        "standard_over_own": (("chosen", "rejected"), 1.0),
        "revised_over_own": (("other", "rejected"), 1.0),
        "standard_over_masked": (("chosen", "rejected_image"), settings["masked"]),
        "revised_over_masked": (("other", "rejected_image_other"), settings["masked"]),
        "anchor": (("chosen", "other"), 1.0),
    }
    made = [
        Part(name=name, loss="by_position", views=views, weight=weight)
        for name, (views, weight) in parts.items()
    ]
    return _method(settings, *made, fields=("opa_scores",))


#: The smoothing of losses named after theirs.
_SMOOTHING = {"robust": {"label_smoothing": 0.1}, "exo_pair": {"label_smoothing": 1e-3}}

METHODS: dict[str, Row] = {
    # "sigmoid" alone is dpo.
    **{name: _of({name: 1.0}, **_SMOOTHING.get(name, {})) for name in SEQUENCE_LOSSES[1:]},
    **{name: _of({"sigmoid": 1.0}, f_divergence=name) for name in get_args(FDivergence)[1:]},
    "ld_dpo": _of({"sigmoid": 1.0}, ld_alpha=0.5),
    "mpo": _of({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}),
    "tpo": Row(settings={"token_weights": "added"}, make=_tpo),
    "vdpo": Row(settings={"gamma": 0.75, "guidance": "policy"}, make=_vdpo),
    "rdpo:released": Row(make=_rdpo_released),
    "dama": Row(
        settings={
            "keep": 0.8, "score_mean": 0.0482190464911681, "momentum": 0.9, "smallest_beta": 1e-3,
        },
        make=lambda settings: _method(
            settings, _response("sigmoid_kept"), fields=("image_text_scores",), scope="scores",
            state="gap",
        ),
    ),
    "dadpo": Row(
        settings={"alpha": 1.0},
        make=lambda settings: _method(
            settings, _response("sigmoid_scored"), fields=("clip_scores",)
        ),
    ),
    "symmpo": Row(
        settings={"symmetric": 0.5, "second_beta": 0.1, "consistency": 1e-4}, make=_symmpo
    ),
    "opadpo": Row(settings={"length": 896, "masked": 0.2}, make=_opadpo),
}  # fmt: skip
