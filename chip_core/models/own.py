"""Families that transformers lacks and this package provides.

transformers' Auto classes know them after `register`; everything in this package that loads a model
or a processor calls it.
"""

from __future__ import annotations

import importlib

#: `model_type` of a config.json -> the package of the family, whose `register` registers it.
FAMILIES = {"muffin": "chip_core.models.muffin"}

#: `model_type` of a checkpoint as its authors released it -> the command that converts it.
CONVERTERS = {"beit3_llava": "python -m chip_core.models.muffin.convert SRC DST"}

#: Those whose processors score a training's tokens by `training.label_rule`.
LABEL_RULE_FAMILIES = frozenset({"muffin"})


def register() -> None:
    """Register this package's families with transformers' Auto classes."""
    for package in FAMILIES.values():
        importlib.import_module(package).register()
