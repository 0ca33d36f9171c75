"""Plug-ins written by earlier documentation run as they are."""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize(
    ("path", "names", "now"),
    [
        ("chip_core.fields", ["Section", "figure"], "chip_core.config.fields"),
        ("chip_core.evaluation.scorers.base", ["Scored"], "chip_core.evaluation.scorer"),
        ("chip_core.evaluation.task", ["MetricInfo"], "chip_core.evaluation.outcomes"),
    ],
)
def test_an_earlier_path_gives_the_same_thing(path: str, names: list[str], now: str) -> None:
    for name in names:
        earlier = getattr(importlib.import_module(path), name)
        assert earlier is getattr(importlib.import_module(now), name)
