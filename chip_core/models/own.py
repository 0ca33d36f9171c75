"""Families that transformers does not have and this package brings.

transformers' Auto classes know them once `register` was called; whatever of this package loads a
model or a processor calls it.
"""

from __future__ import annotations

import importlib

#: `model_type` of a config.json -> the package that has the family; its `register` makes it known.
FAMILIES = {"muffin": "chip_core.models.muffin"}

#: `model_type` of a checkpoint as its authors released it -> what makes one of ours of it.
CONVERTERS = {"beit3_llava": "python -m chip_core.models.muffin.convert SRC DST"}

#: Those of them whose processors score a training's tokens by `training.label_rule`.
WITH_LABEL_RULES = frozenset({"muffin"})


def register() -> None:
    """Let transformers' Auto classes find this package's own families."""
    for package in FAMILIES.values():
        importlib.import_module(package).register()
