"""How a configuration field declares whether it belongs to a trial's fingerprint.

Every field of the configuration tree is made by one of these two; a test fails for one that is
not, so that no field can change figures without changing the fingerprint.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A node of the configuration tree: frozen, typed, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


def figure(default: Any = ..., *, doc: str, **limits: Any) -> Any:
    """A field that can change a trial's figures: part of the fingerprint."""
    return _field(default, doc, "in", limits)


def engine(default: Any = ..., *, doc: str, **limits: Any) -> Any:
    """A field that changes how the work is done, not what comes out: not in the fingerprint."""
    return _field(default, doc, "out", limits)


def _field(default: Any, doc: str, fingerprint: str, limits: dict[str, Any]) -> Any:
    if callable(default):
        # A section is frozen: one default serves all, and a plan makes 10,000 of its trees.
        once = isinstance(default, type) and issubclass(default, Section)
        limits["default_factory"] = functools.cache(default) if once else default
    else:
        limits["default"] = default
    return Field(description=doc, json_schema_extra={"fingerprint": fingerprint}, **limits)
