"""The objective as configured: a preset, its active terms, their weights, beta.

The grammar is in docs/objectives.md. Terms and weights: paper, section 3 (L = w_v L_visual +
w_r L_response + lambda L_segment + gamma L_token).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from chip_core.fields import Section, figure

Term = Literal["response", "segment", "token", "visual"]
Preset = Literal["dpo", "cmdpo", "hdpo", "chip", "tdpo"]

PRESET_TERMS: dict[str, tuple[Term, ...]] = {
    "dpo": ("response",),
    "cmdpo": ("response", "visual"),
    "hdpo": ("response", "segment", "token"),
    "chip": ("response", "segment", "token", "visual"),
    "tdpo": ("response", "token"),
}


class Weights(Section):
    """What multiplies each term. The weight of an inactive term is inert; 0 deactivates."""

    response: float = figure(1.0, ge=0, doc="w_r, of the response term")
    segment: float = figure(1.0, ge=0, doc="lambda, of the segment term")
    token: float = figure(0.1, ge=0, doc="gamma, of the token term")
    visual: float = figure(1.0, ge=0, doc="w_v, of the visual term")


class ObjectiveConfig(Section):
    """The training objective. A bare string is its preset."""

    preset: Preset = figure("chip", doc="which terms are active, by name")
    terms: tuple[Term, ...] | None = figure(
        None, doc="the active terms outright, in place of the preset's"
    )
    weights: Weights = figure(Weights, doc="what multiplies each term")
    beta: float = figure(0.1, gt=0, doc="the DPO temperature")

    @model_validator(mode="before")
    @classmethod
    def _bare_string_is_the_preset(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _something_is_active(self) -> ObjectiveConfig:
        if self.terms is not None and len(set(self.terms)) != len(self.terms):
            raise ValueError("a term is named twice: name each once")
        if not self.active_terms:
            raise ValueError("no term is active: name a term, or give one a weight above 0")
        return self

    @property
    def active_terms(self) -> tuple[Term, ...]:
        """The terms that take part: named by `terms` or the preset, with a weight above 0."""
        named = self.terms if self.terms is not None else PRESET_TERMS[self.preset]
        return tuple(term for term in named if getattr(self.weights, term) > 0)

    def weight(self, term: Term) -> float:
        """The weight of a term; 0 where it is not active."""
        value: float = getattr(self.weights, term)
        return value if term in self.active_terms else 0.0
