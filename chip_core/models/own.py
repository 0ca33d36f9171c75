"""Families that transformers does not have and this package brings.

transformers' Auto classes know them once `register` was called; whatever of this package loads a
model or a processor calls it.
"""

from __future__ import annotations

import importlib

#: `model_type` of a config.json -> the package that has the family; its `register` makes it known.
FAMILIES = {"muffin": "chip_core.models.muffin"}

#: Those of them whose processors score a training's tokens by `training.label_rule`.
WITH_LABEL_RULES = frozenset({"muffin"})


def register() -> None:
    """Let transformers' Auto classes find this package's own families."""
    for package in FAMILIES.values():
        importlib.import_module(package).register()
