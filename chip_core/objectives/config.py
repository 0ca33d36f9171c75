"""The configuration of an objective: a preset, its active terms, their weights, beta.

The grammar is in docs/objectives.md. Terms and weights: paper, section 3 (L = w_v L_visual +
w_r L_response + lambda L_segment + gamma L_token).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, WithJsonSchema, model_validator

from chip_core.config.fields import Section, Shorthand, hashed
from chip_core.objectives.methods import METHODS, MethodConfig, Settings, resolve_settings
from chip_core.objectives.parts import VIEWS, Method, Quantity, Reads, Requirements, Scope
from chip_core.utils.registry import suggest

Term = Literal["response", "segment", "token", "visual", "anchor"]
Preset = Literal["dpo", "cmdpo", "hdpo", "chip", "tdpo", "mdpo", "rdpo", "chairdpo"]
Form = Literal["paper", "one_sigmoid", "released"]

TERMS: tuple[Term, ...] = get_args(Term)

PRESET_TERMS: dict[str, tuple[Term, ...]] = {
    "dpo": ("response",),
    "cmdpo": ("response", "visual"),
    "hdpo": ("response", "segment", "token"),
    "chip": ("response", "segment", "token", "visual"),
    "tdpo": ("response", "token"),
    "mdpo": ("response", "visual", "anchor"),
    "rdpo": ("response", "visual"),
    "chairdpo": ("response",),
}

#: Presets with a temperature of their own.
PRESET_BETAS = {"chairdpo": 0.2}


class Weights(Section):
    """What multiplies each term. The weight of an inactive term is inert; 0 deactivates."""

    response: float = hashed(1.0, ge=0, doc="w_r, of the response term")
    segment: float = hashed(1.0, ge=0, doc="lambda, of the segment term")
    token: float = hashed(0.1, ge=0, doc="gamma, of the token term")
    visual: float = hashed(1.0, ge=0, doc="w_v, of the visual term")


class Betas(Section):
    """A term's own temperature; null: `beta`."""

    response: float | None = hashed(None, gt=0, doc="of the response term")
    segment: float | None = hashed(None, gt=0, doc="of the segment term")
    token: float | None = hashed(None, gt=0, doc="of the token term")
    visual: float | None = hashed(None, gt=0, doc="of the visual term")
    anchor: float | None = hashed(None, gt=0, doc="of the anchor term")


class SegmentConfig(Section):
    """What counts as changed, and how a segment's sum is scaled."""

    normalize: Literal["none", "changed_tokens"] = hashed(
        "none", doc="'changed_tokens': each response's sum is divided by its changed tokens"
    )
    insertions: bool = hashed(False, doc="whether a span that only one side has counts")
    scope: Literal["response", "sequence"] = hashed(
        "response", doc="compare the responses, or whole sequences as the released code does"
    )


class TokenConfig(Section):
    """The token term."""

    form: Literal["linear", "sigmoid"] = hashed(
        "linear", doc="β(D_l − sg D_w), or −log σ(−β(D_l − sg D_w))"
    )


class AnchorConfig(Section):
    """mDPO's anchor: −log σ(β[lp_π(y_w) − lp_ref(y_w)] − delta)."""

    delta: float = hashed(0.0, doc="how far above 0 the chosen response's reward should be")
    weight: float = hashed(1.0, ge=0, doc="of the anchor term")


#: Presets of terms, then those of `METHODS`; a row with a colon is another form of a preset.
PRESETS = (*get_args(Preset), *(name for name in METHODS if ":" not in name))


def _validate_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"unknown level '{name}': {suggest(name, PRESETS)}")
    return name


PresetName = Annotated[
    str, AfterValidator(_validate_preset), WithJsonSchema({"enum": list(PRESETS), "type": "string"})
]


def _requirements_of(name: str) -> Requirements:
    from chip_core.objectives import custom  # imports torch, which planning does not need

    return custom.term_requirements(custom.load_term(name))


class ObjectiveConfig(Shorthand):
    """The training objective. A bare string is its preset."""

    shorthand = "preset"

    form: Form = hashed(
        "paper",
        doc="'paper': a sum of losses; 'one_sigmoid': all margins in one −log σ; 'released': the "
        "released code's arithmetic, including its mis-scaled visual reference",
    )
    preset: PresetName = hashed("chip", doc="which terms are active, by name")
    terms: tuple[Term, ...] | None = hashed(None, doc="the active terms, instead of the preset's")
    weights: Weights = hashed(Weights, doc="what multiplies each term")
    beta: float = hashed(0.1, gt=0, doc="the DPO temperature")
    betas: Betas = hashed(Betas, doc="a term's own temperature")
    segment: SegmentConfig = hashed(SegmentConfig, doc="the segment term's settings")
    token: TokenConfig = hashed(TokenConfig, doc="the token term's settings")
    anchor: AnchorConfig = hashed(AnchorConfig, doc="the anchor term's settings")
    custom: dict[str, float] = hashed(
        dict, doc="terms of your own, `module:attr` -> weight, added to form 'paper'"
    )
    average_logps: bool = hashed(
        False, doc="divide each sum of log-probabilities by its (weighted) token count"
    )
    method: MethodConfig = hashed(
        MethodConfig, doc="settings of presets that are sums of losses of margins"
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_preset_beta(cls, value: Any) -> Any:
        if isinstance(value, str):  # the shorthand is only expanded after this validator
            value = {cls.shorthand: value}
        preset = value.get("preset") if isinstance(value, dict) else None
        if isinstance(preset, str) and preset in PRESET_BETAS:
            return {"beta": PRESET_BETAS[preset], **value}
        return value

    @model_validator(mode="after")
    def _check_computable(self) -> ObjectiveConfig:
        if self.terms is not None and len(set(self.terms)) != len(self.terms):
            raise ValueError("a term is named twice: name each once")
        for name, weight in self.custom.items():
            if weight < 0:
                raise ValueError(f"custom: the weight of '{name}' is negative: use 0 or more")
            _requirements_of(name)
        if self.method_name is not None:
            problem = METHODS[self.method_name].validate(self.method_settings)
            if problem is not None:
                raise ValueError(f"preset {self.preset}: method: {problem}")
        elif not self.active_terms and not self.active_custom:
            raise ValueError("no term is active: name a term, or give one a weight above 0")
        unsupported = self._unsupported_settings()
        if unsupported:
            raise ValueError(f"form {self.form} cannot do {'; '.join(unsupported)}")
        return self

    @property
    def active_terms(self) -> tuple[Term, ...]:
        """The active terms: named by `terms` or the preset, with a weight above 0."""
        return tuple(term for term in TERMS if self.weight(term) > 0)

    @property
    def method_name(self) -> str | None:
        """The preset's name in `METHODS`; None if the objective is a sum of terms."""
        if self.terms is not None:
            return None
        if self.preset == "rdpo" and self.form == "released":
            return "rdpo:released"
        return self.preset if self.preset in METHODS else None

    @property
    def method_settings(self) -> Settings:
        """The preset's settings, with its defaults where none is given."""
        assert self.method_name is not None
        return resolve_settings(METHODS[self.method_name], self.method)

    @property
    def resolved_method(self) -> Method | None:
        """The method of the preset and its settings; None if the objective is a sum of terms."""
        if self.method_name is None:
            return None
        return METHODS[self.method_name].build(self.method_settings)

    @property
    def inert_settings(self) -> tuple[str, ...]:
        """Keys of `method` that have no effect here."""
        method = self.resolved_method
        effective = () if method is None else method.settings
        return tuple(name for name in MethodConfig.model_fields if name not in effective)

    @property
    def policy_reads(self) -> Reads:
        """The quantities read of each view of the policy."""
        return self._collect_reads("policy")

    @property
    def reference_reads(self) -> Reads:
        """The quantities read of each view of the reference."""
        return self._collect_reads("reference")

    def _collect_reads(self, side: Literal["policy", "reference"]) -> Reads:
        reads: dict[str, frozenset[Quantity]] = {}
        for requirements in self._requirements:
            for view, quantities in getattr(requirements, side).items():
                reads[view] = reads.get(view, frozenset()) | quantities
        return {view: reads[view] for view in VIEWS if view in reads}

    @property
    def views(self) -> tuple[str, ...]:
        """The views that are read, of policy or reference."""
        read = {**self.policy_reads, **self.reference_reads}
        return tuple(view for view in VIEWS if view in read)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of a row that are read, in addition to texts and images."""
        return tuple(dict.fromkeys(name for part in self._requirements for name in part.fields))

    @property
    def scope(self) -> Scope | None:
        """What is read of the global batch, in addition to the pair itself."""
        scopes = {part.scope for part in self._requirements}
        return "scores" if "scores" in scopes else "tokens" if "tokens" in scopes else None

    @property
    def _requirements(self) -> list[Requirements]:
        method = self.resolved_method
        parts: list[Requirements] = [] if method is None else [method]
        parts += map(_requirements_of, self.active_custom)
        if method is None or self.active_custom:
            visual = ["rejected_image"] if "visual" in self.active_terms else []
            logps: frozenset[Quantity] = frozenset(["logps"])
            reads = dict.fromkeys(["chosen", "rejected", *visual], logps)
            parts.append(Requirements(policy=reads, reference=reads))
        return parts

    def reads_image(self, image: str) -> bool:
        """Return whether a term reads any response under an image."""
        return any(VIEWS[view][0] == image for view in self.views)

    @property
    def needs_third_response(self) -> bool:
        """Whether a term reads a third response."""
        return any(VIEWS[view][1] == "other" for view in self.views)

    @property
    def active_custom(self) -> tuple[str, ...]:
        """The user's own terms with a weight above 0."""
        return tuple(sorted(name for name, weight in self.custom.items() if weight > 0))

    @property
    def needs_rejected_image(self) -> bool:
        """Whether a term reads a response under the rejected image."""
        if self.method_name is None and not self.custom:  # plans call it thousands of times
            return "visual" in self.active_terms
        return self.reads_image("rejected_image")

    @property
    def needs_divergence(self) -> bool:
        """Whether a term reads KL(reference || policy)."""
        return "token" in self.active_terms or self.trains_chosen_divergence

    @property
    def trains_chosen_divergence(self) -> bool:
        """Whether a term may train the chosen response's divergence.

        A user's own term may; the token term detaches it.
        """
        return any(part.divergence for part in self._requirements)

    @property
    def warning(self) -> str | None:
        """A warning for users of this objective; None if there is none."""
        untrained_settings = {"gamma": 0, "guidance": "policy"}
        if self.method_name == "vdpo" and self.method_settings == untrained_settings:
            return (
                "vdpo with gamma 0 and the policy's guidance, as its released script has it, has "
                "no gradient: nothing is trained. Set objective.method.gamma above 0"
            )
        if self.form != "released" or self.method_name is not None:
            return None
        return (
            "form 'released' repeats the released code to the digit, errors included: with a "
            "segment weight its visual reference is mis-scaled and saturates the sigmoid. It is "
            "here to reproduce that code; 'one_sigmoid' is the same objective without the error"
        )

    @property
    def segment_scope(self) -> Literal["response", "sequence"]:
        """The sequences that are compared to find the changed tokens."""
        return "sequence" if self.form == "released" else self.segment.scope

    def weight(self, term: Term) -> float:
        """The weight of a term; 0 if it is not active."""
        if self.method_name is not None or term not in self._named_terms:
            return 0.0
        return self.anchor.weight if term == "anchor" else float(getattr(self.weights, term))

    def term_beta(self, term: Term) -> float:
        """The temperature of a term."""
        override: float | None = getattr(self.betas, term)
        return self.beta if override is None else override

    @property
    def _named_terms(self) -> tuple[Term, ...]:
        return self.terms if self.terms is not None else PRESET_TERMS[self.preset]

    def _unsupported_settings(self) -> list[str]:
        """Return what this form cannot compute."""
        if self.method_name is not None:
            unsupported = {
                f"preset {self.preset}": self.form != "paper" and self.method_name == self.preset,
                f"average_logps with preset {self.preset}": self.average_logps,
            }
            return [setting for setting, applies in unsupported.items() if applies]
        if self.form == "paper":
            return []
        active = self.active_terms
        own_betas = any(getattr(self.betas, term) is not None for term in active)
        unsupported = {
            "the anchor term": "anchor" in active,
            "custom terms": bool(self.active_custom),
            "token.form sigmoid": "token" in active and self.token.form == "sigmoid",
            "betas of single terms with average_logps": own_betas and self.average_logps,
            "segment.normalize": "segment" in active and self.segment.normalize != "none",
        }
        if self.form == "released":
            unsupported |= {
                "an objective without the response term": "response" not in active,
                "weights.response other than 1": self.weight("response") not in (0, 1),
                "weights.visual other than 0 and 1": self.weight("visual") not in (0, 1),
                "betas of single terms": own_betas,
                "segment.insertions": "segment" in active and self.segment.insertions,
                "average_logps": self.average_logps,
            }
        return [setting for setting, applies in unsupported.items() if applies]
