"""Plug-ins written by earlier documentation run as they are."""

from __future__ import annotations

import pkgutil

import pytest


@pytest.mark.parametrize(
    ("earlier", "current"),
    [
        ("chip_core.fields.Section", "chip_core.config.fields.Section"),
        ("chip_core.fields.figure", "chip_core.config.fields.hashed"),
        ("chip_core.config.fields.figure", "chip_core.config.fields.hashed"),
        ("chip_core.evaluation.scorers.base.Scored", "chip_core.evaluation.scorer.ScoreResult"),
        ("chip_core.evaluation.scorer.Scored", "chip_core.evaluation.scorer.ScoreResult"),
        ("chip_core.evaluation.task.MetricInfo", "chip_core.evaluation.outcomes.MetricInfo"),
    ],
)
def test_an_earlier_name_gives_the_same_thing(earlier: str, current: str) -> None:
    assert pkgutil.resolve_name(earlier) is pkgutil.resolve_name(current)
