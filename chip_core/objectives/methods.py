"""The presets that are sums of losses of margins, one row each. docs/objectives.md has sources.

A row lists the settings of a preset with their defaults, and builds its method. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import model_validator

from chip_core.config.fields import Section, hashed
from chip_core.objectives.parts import Method, Part, Quantity, Reads, Scope

FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

#: Losses of the four sequence log-probabilities, by TRL's names.
SEQUENCE_LOSSES = (
    "sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
)  # fmt: skip

#: The losses that another f-divergence is defined for: β log Z cancels only in a difference.
_DIFFERENCE_LOSSES = {
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft",
}  # fmt: skip


class MethodConfig(Section):
    """Settings of presets that are sums of losses of margins; null: the preset's own value."""

    losses: dict[str, float] | None = hashed(
        None, doc="losses by TRL's names -> their weights, instead of the preset's"
    )
    label_smoothing: float | None = hashed(
        None, ge=0, lt=0.5, doc="for robust, exo_pair, aot and aot_unpaired"
    )
    tau: float | None = hashed(None, gt=0, doc="for discopop: temperature of its modulation")
    f_divergence: FDivergence | None = hashed(
        None, doc="divergence that keeps the policy near the reference, for TRL's losses"
    )
    f_alpha: float | None = hashed(None, doc="for alpha_divergence")
    ld_alpha: float | None = hashed(
        None, ge=0, le=1, doc="weight of tokens beyond the shorter response's length"
    )
    shift: bool | None = hashed(None, doc="for bco_pair: subtract the running mean of rewards")
    symmetric: float | None = hashed(None, ge=0, doc="symmpo: weight of the symmetric preferences")
    second_beta: float | None = hashed(None, gt=0, doc="symmpo: temperature of the second anchor")
    consistency: float | None = hashed(None, ge=0, doc="symmpo: weight of the equal margins")
    token_weights: Literal["added", "multiplied"] | None = hashed(
        None, doc="tpo: 'added': log c is added to log p; 'multiplied': c times log p"
    )
    gamma: float | None = hashed(None, ge=0, doc="vdpo: strength of the image's guidance; 1: none")
    guidance: Literal["policy", "reference"] | None = hashed(
        None, doc="vdpo: whose log-probability without the image"
    )
    keep: float | None = hashed(None, gt=0, le=1, doc="dama: share of the batch that is kept")
    score_mean: float | None = hashed(
        None, doc="dama: mean score difference of the data, chosen minus rejected"
    )
    momentum: float | None = hashed(
        None, ge=0, lt=1, doc="dama: momentum of the running mean of gaps"
    )
    smallest_beta: float | None = hashed(None, gt=0, doc="dama: lower bound of a pair's beta")
    alpha: float | None = hashed(None, gt=0, doc="dadpo: factor of the scores' weight")
    length: int | None = hashed(None, ge=1, doc="opadpo: positions that responses are padded to")
    masked: float | None = hashed(None, ge=0, doc="opadpo: weight of the masked image's terms")

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
class MethodPreset:
    """A preset."""

    settings: Mapping[str, Any] = field(default_factory=dict)  # its settings, with their defaults
    build: Callable[[Settings], Method]
    #: Returns why its settings are invalid; None if they are valid.
    validate: Callable[[Settings], str | None] = lambda _: None


def resolve_settings(preset: MethodPreset, config: MethodConfig) -> Settings:
    """Return a preset's settings, with its defaults where none is given."""
    overrides = {name: getattr(config, name) for name in preset.settings}
    return {
        name: preset.settings[name] if value is None else value for name, value in overrides.items()
    }


def _reads(*views: str, quantity: Quantity = "logps") -> Reads:
    return {view: frozenset([quantity]) for view in views}


def _make_method(
    settings: Settings, *parts: Part, reads: Reads | None = None, **options: Any
) -> Method:
    """Return the parts with a nonzero weight; policy and reference are read as their views need."""
    active_parts = tuple(part for part in parts if part.weight)
    model_reads = (
        _reads(*(view for part in active_parts for view in part.views)) if reads is None else reads
    )
    return Method(
        **{
            "parts": active_parts,
            "settings": settings,
            "policy": model_reads,
            "reference": model_reads,
            **options,
        }
    )


def _response_part(loss: str = "sigmoid") -> Part:
    return Part(name="response", loss=loss)


def _make_sequence_method(settings: Settings) -> Method:
    """Return a weighted sum of losses of the four sequence log-probabilities."""
    losses = {name: weight for name, weight in settings["losses"].items() if weight > 0}
    effective = {"losses": losses}
    setting_losses: dict[str, set[str]] = {
        "label_smoothing": {"robust", "exo_pair", "aot", "aot_unpaired"},
        "tau": {"discopop"},
        "shift": {"bco_pair"},
    }
    effective |= {
        name: settings[name] for name, users in setting_losses.items() if users & set(losses)
    }
    if set(losses) != {"sft"}:
        effective |= {name: settings[name] for name in ("f_divergence", "ld_alpha")}
    if settings["f_divergence"] == "alpha_divergence":
        effective["f_alpha"] = settings["f_alpha"]
    has_shift = bool(effective.get("shift"))
    scope: Scope | None = "tokens" if "sft" in losses else None
    if has_shift or {"aot", "aot_unpaired"} & set(losses):
        scope = "scores"
    parts = [
        Part(
            name=name,
            loss="bco_pair_shift" if name == "bco_pair" and has_shift else name,
            views=("chosen",) if name == "sft" else ("chosen", "rejected"),
            weight=weight,
        )
        for name, weight in losses.items()
    ]
    reference: dict[str, Reads] = {"reference": {}} if set(losses) == {"sft"} else {}
    state = "mean_reward" if has_shift else None
    return _make_method(effective, *parts, scope=scope, state=state, **reference)


def _validate_sequence(settings: Settings) -> str | None:
    losses = {name for name, weight in settings["losses"].items() if weight > 0}
    divergence = settings["f_divergence"]
    if "exo_pair" in losses and settings["label_smoothing"] == 0:
        return "exo_pair needs a label_smoothing above 0: its paper uses 0.001"
    if divergence != "reverse_kl" and not losses <= _DIFFERENCE_LOSSES:
        unsupported = ", ".join(sorted(losses - _DIFFERENCE_LOSSES))
        return (
            f"f_divergence {divergence} is not defined for {unsupported}: "
            f"use {sorted(_DIFFERENCE_LOSSES)}"
        )
    return None


def _sequence_preset(losses: dict[str, float], **overrides: Any) -> MethodPreset:
    defaults = {
        "losses": losses, "label_smoothing": 0.0, "tau": 0.05, "f_divergence": "reverse_kl",
        "f_alpha": 0.5, "ld_alpha": None, "shift": False,
    }  # fmt: skip
    return MethodPreset(
        settings={**defaults, **overrides}, build=_make_sequence_method, validate=_validate_sequence
    )


def _make_tpo(settings: Settings) -> Method:
    reads: dict[str, frozenset[Quantity]] = {
        **dict.fromkeys(("chosen", "rejected"), frozenset[Quantity](["logps", "logits"])),
        **_reads("rejected_image", "rejected_image_rejected", quantity="logits"),
    }
    reward = "visual_weights" if settings["token_weights"] == "added" else "multiplied"
    return _make_method(settings, _response_part(), reads=reads, reward=reward)


def _make_vdpo(settings: Settings) -> Method:
    blank_reads = _reads("rejected_image", "rejected_image_rejected")
    if settings["gamma"] == 1:  # without guidance it is dpo: the blank image is not used
        blank_reads = {}
    guide = settings["guidance"]
    reads = {guide: {**_reads("chosen", "rejected"), **blank_reads}}
    return _make_method(settings, _response_part(), reward="guided", **reads)


def _make_rdpo_released(settings: Settings) -> Method:
    other_reads = _reads("rejected", "rejected_image", quantity="best_other")
    visual = Part(name="visual", loss="sigmoid", views=("chosen", "rejected_image"))
    reads = {**_reads("chosen"), **other_reads}
    return _make_method(settings, _response_part(), visual, reads=reads, reward="best_other")


def _make_symmpo(settings: Settings) -> Method:
    first, second = ("chosen", "other"), ("second_image_other", "second_image")
    beta, weight, equal = (settings[name] for name in ("second_beta", "symmetric", "consistency"))
    return _make_method(
        settings,
        _response_part(),
        Part(name="symmetric_1", loss="sigmoid", views=first, weight=weight),
        Part(name="symmetric_2", loss="sigmoid", views=second, weight=weight),
        Part(name="anchor_1", loss="anchor", views=("chosen",)),
        Part(name="anchor_2", loss="anchor", views=("second_image_other",), beta=beta),
        Part(name="margin_consistency", loss="equal_margins", views=first + second, weight=equal),
    )


def _make_opadpo(settings: Settings) -> Method:
    part_views = {  # name -> views, weight
        "standard_over_own": (("chosen", "rejected"), 1.0),
        "revised_over_own": (("other", "rejected"), 1.0),
        "standard_over_masked": (("chosen", "rejected_image"), settings["masked"]),
        "revised_over_masked": (("other", "rejected_image_other"), settings["masked"]),
        "anchor": (("chosen", "other"), 1.0),
    }
    parts = [
        Part(name=name, loss="by_position", views=views, weight=weight)
        for name, (views, weight) in part_views.items()
    ]
    return _make_method(settings, *parts, fields=("opa_scores",))


#: Losses with their own name for the smoothing.
_SMOOTHING = {"robust": {"label_smoothing": 0.1}, "exo_pair": {"label_smoothing": 1e-3}}

METHODS: dict[str, MethodPreset] = {
    # "sigmoid" alone is dpo.
    **{
        name: _sequence_preset({name: 1.0}, **_SMOOTHING.get(name, {}))
        for name in SEQUENCE_LOSSES[1:]
    },
    **{
        name: _sequence_preset({"sigmoid": 1.0}, f_divergence=name)
        for name in get_args(FDivergence)[1:]
    },
    "ld_dpo": _sequence_preset({"sigmoid": 1.0}, ld_alpha=0.5),
    "mpo": _sequence_preset({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}),
    "tpo": MethodPreset(settings={"token_weights": "added"}, build=_make_tpo),
    "vdpo": MethodPreset(settings={"gamma": 0.75, "guidance": "policy"}, build=_make_vdpo),
    "rdpo:released": MethodPreset(build=_make_rdpo_released),
    "dama": MethodPreset(
        settings={
            "keep": 0.8, "score_mean": 0.0482190464911681, "momentum": 0.9, "smallest_beta": 1e-3,
        },
        build=lambda settings: _make_method(
            settings, _response_part("sigmoid_kept"), fields=("image_text_scores",), scope="scores",
            state="gap",
        ),
    ),
    "dadpo": MethodPreset(
        settings={"alpha": 1.0},
        build=lambda settings: _make_method(
            settings, _response_part("sigmoid_scored"), fields=("clip_scores",)
        ),
    ),
    "symmpo": MethodPreset(
        settings={"symmetric": 0.5, "second_beta": 0.1, "consistency": 1e-4}, build=_make_symmpo
    ),
    "opadpo": MethodPreset(settings={"length": 896, "masked": 0.2}, build=_make_opadpo),
}  # fmt: skip
