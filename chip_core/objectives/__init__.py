"""The CHiP objectives: configuration, segments, log-probabilities, terms.

torch is imported only when a name that computes is used, so that planning a study does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chip_core.objectives.config import ObjectiveConfig, Term

if TYPE_CHECKING:
    from chip_core.objectives.from_logits import ObjectiveOutput, objective_from_logits

__all__ = ["ObjectiveConfig", "ObjectiveOutput", "Term", "objective_from_logits"]


def __getattr__(name: str) -> Any:
    """Import the names that compute on first use (PEP 562)."""
    if name in ("ObjectiveOutput", "objective_from_logits"):
        from chip_core.objectives import from_logits

        return getattr(from_logits, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
