"""Studies on shipped recipes: planned with neither weights nor a network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from chip_core import recipes
from orchestrator.plan.plan import make_plan
from orchestrator.study.load import find_study, load_study
from orchestrator.study.model import Study, StudyChanges

STAGES = """
study: stages
factors:
  vision_encoder: [frozen, trained, staged]
  language_model: [full, lora]
  lora.rank: [4, 8]
  staged.share: [0.1, 0.5]
"""


@pytest.mark.parametrize("recipe", recipes.recipe_names())
def test_a_study_plans_on_every_recipe(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("planning asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    plan = make_plan(load_study(find_study("encoder"), StudyChanges(recipe=recipe)))
    assert len(plan.arms) >= 4
    assert len({trial.fingerprint for trial in plan.trials}) == len(plan.trials)


def test_settings_without_effect_make_no_trials(load: Callable[..., Study]) -> None:
    plan = make_plan(load(STAGES), lambda model: {"content": "the model"})
    # (frozen, trained: 1 each; staged: 2 shares) × (full: 1; lora: 2 ranks)
    assert len(plan.arms) == (1 + 1 + 2) * (1 + 2)
    reasons = {reason for arm in plan.arms for reason in arm.reasons}
    assert "lora.rank has no effect: language_model is full" in reasons
    assert "staged.share has no effect: vision_encoder is frozen" in reasons
