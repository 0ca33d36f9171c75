"""What can be wrong with `when`, `design`, `cells`, `include`, `exclude` and `baseline`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chip_core.utils.errors import ConfigError
from orchestrator.plan.plan import Plan
from orchestrator.study.model import Study

STUDY = """
study: small
factors:
  objective: [dpo, chip]
  objective.weights.segment: [1, 3]
  vision_encoder: [frozen, trained]
when:
  objective.weights.segment: {objective: chip}
"""
#: Added to the file above, in place of its `when` where it has one -> what is told.
WRONG = {
    "when: {optimizer.lr: {objective: chip}}":
        ["when.optimizer.lr: unknown factor: choices: objective, objective.weights.segment, "
         "vision_encoder"],
    "when: {vision_encoder: {objective: hdpo}}":
        ["when.vision_encoder.objective: unknown level 'hdpo': did you mean 'dpo'? "
         "choices: chip, dpo"],
    "when: {vision_encoder: {vision_encoder: frozen}}":
        ["when.vision_encoder: a factor cannot depend on itself: name another"],
    "when: {vision_encoder: {}}": ["when.vision_encoder: names no factor: name one and its levels"],
    "when: {vision_encoder: {objective: chip}, objective: {vision_encoder: trained}}":
        ["when: objective, vision_encoder depend on each other: break the circle"],
    "when: {vision_encoder: chip}":
        ["when.vision_encoder: input should be a valid dictionary or a valid list, not 'chip'"],
    "design: factorial":
        ["design: unknown level 'factorial': choices: cells, grid, leave_one_out, one_at_a_time"],
    "design: cells":
        ["cells: is required under `design: cells`, and not allowed under another design"],
    "cells: [{objective: dpo, vision_encoder: frozen}]":
        ["cells: is required under `design: cells`, and not allowed under another design"],
    "design: cells\ncells: [{objective: dpo}]":
        ["cells[0]: names no level of 'vision_encoder': an entry is one cell"],
    "design: cells\ncells: [{objective: dpo, vision_encoder: frozen}]":
        ["when.objective.weights.segment: no cell of the study has objective = chip: "],
    "design: cells\ncells: [{objective: dpo, vision_encoder: frozen}, "
    "{objective: [dpo, chip], objective.weights.segment: 1, vision_encoder: frozen}]":
        ["cells[1].objective.weights.segment: applies only where objective = chip: leave it out"],
    "design: cells\ncells: [{objective: dpo, vision_encoder: [frozen, trained]}, "
    "{objective: dpo, vision_encoder: trained}, "
    "{objective: chip, objective.weights.segment: 1, vision_encoder: frozen}]":
        ["cells[1]: the cell objective = dpo, vision_encoder = trained is listed twice: "
            "remove one"],
    "include: [{objective: hdpo}]":
        ["include[0].objective: unknown level 'hdpo': did you mean 'dpo'?"],
    "include: [{}]": ["include[0]: names no factor: name one and its levels"],
    "include: [{objective: dpo, objective.weights.segment: 3}, {vision_encoder: trained}]":
        ["include[0]: no cell has objective = dpo and objective.weights.segment = 3: remove it"],
    "exclude: [{objective: [dpo, chip]}]": ["exclude: leaves no cell: leave out fewer"],
    "baseline: {objective: dpo, objective.weights.segment: 1, vision_encoder: frozen}":
        ["baseline.objective.weights.segment: applies only where objective = chip: leave it out"],
    "baseline: {objective: chip, vision_encoder: frozen}":
        ["baseline: names no level of 'objective.weights.segment': a baseline is one cell"],
    "baseline: {objective: dpo, vision_encoder: [frozen, trained]}":
        ["baseline.vision_encoder: names 2 levels: a baseline is one cell"],
    "baseline: {objective: dpo, vision_encoder: frozen}\ninclude: [{vision_encoder: trained}]":
        ["baseline: no pattern of `include` has this cell: add one, or choose another cell"],
    "baseline: {objective: dpo, vision_encoder: frozen}\nexclude: [{vision_encoder: frozen}]":
        ["baseline: this cell is excluded: choose a cell of the grid"],
    "design: one_at_a_time\nexclude: [{objective: dpo, vision_encoder: frozen}]":
        ["baseline: this cell is excluded: choose a cell of the grid"],
    "design: leave_one_out\nbaseline: {objective: dpo, vision_encoder: trained}":
        ["baseline.objective: under leave_one_out, the first level, 'dpo', means that the "
            "factor is left out"],
    "design: cells\ncells: [{objective: dpo, vision_encoder: frozen}, "
    "{objective: chip, objective.weights.segment: 1, vision_encoder: frozen}]\n"
    "baseline: {objective: dpo, vision_encoder: trained}":
        ["baseline: design cells has no such cell: choose one that it has"],
}  # fmt: skip


@pytest.mark.parametrize("added", WRONG)
def test_each_wrong_layout_is_refused(load: Callable[..., Study], added: str) -> None:
    text = STUDY[: STUDY.index("when:")] if added.startswith("when:") else STUDY
    with pytest.raises(ConfigError) as caught:
        load(text + added + "\n")
    found = [line.split("study.yaml: ", 1)[1] for line in caught.value.problems]
    assert len(found) == len(WRONG[added]), found
    for line, expected in zip(found, WRONG[added], strict=True):
        assert line.startswith(expected)


def test_all_problems_are_reported_at_once(load: Callable[..., Study]) -> None:
    added = "design: cells\nexclude: [{objective: hdpo}]\nbaseline: {objectiv: dpo}\nseeds: 0\n"
    with pytest.raises(ConfigError) as caught:
        load(STUDY + added)
    keys = [line.split(": ")[1] for line in caught.value.problems]
    assert keys == ["seeds", "exclude[0].objective", "cells"]


def test_a_factor_that_is_wrong_itself_is_told_once(load: Callable[..., Study]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(STUDY.replace("objective: [dpo, chip]", "objective: []"))
    (line,) = caught.value.problems
    assert line.endswith("factors.objective: has no levels: give at least one")


def test_too_many_cells_are_told(load: Callable[..., Study]) -> None:
    rates = ", ".join(f"{number}e-6" for number in range(1, 701))
    steps = ", ".join(str(number) for number in range(1, 301))
    text = f"study: big\nfactors:\n  optimizer.lr: [{rates}]\n  training.max_steps: [{steps}]\n"
    with pytest.raises(ConfigError, match="factors: give more than 200,000 cells"):
        load(text)


def test_arms_are_told_apart_where_factors_do_not_apply(plan_of: Callable[..., Plan]) -> None:
    text = """
    study: names
    factors:
      training.epochs: [2]
      training.max_steps: [1, 2]
      optimizer.warmup: [0]
      training.batch_size: [1]
    when:
      training.epochs: {training.max_steps: 1}
      training.batch_size: {training.max_steps: 2}
    """
    assert [arm.name for arm in plan_of(text).arms] == ["2, 0, 1", "2, 1, 0"]
    # Without the warm-up both would be "2, 1".
    same = text.replace("      optimizer.warmup: [0]\n", "")
    assert [arm.name for arm in plan_of(same).arms] == ["—, 2, 1", "2, 1, —"]


def test_what_a_cell_has_not_is_a_dash_among_its_factors(plan_of: Callable[..., Plan]) -> None:
    dpo, *_ = plan_of(STUDY + "seeds: [0]\n").arms
    assert dpo.name == "dpo, frozen"
    assert dpo.params == {
        "objective": "dpo", "objective.weights.segment": "—", "vision_encoder": "frozen",
    }  # fmt: skip


def test_cells_that_are_no_configuration_are_told_but_not_all(
    plan_of: Callable[..., Plan],
) -> None:
    rates = ", ".join(f"{number}e-6" for number in range(1, 31))
    text = f"""
    study: invalid
    factors:
      projector: [trained, frozen]
      language_model: [full, frozen]
      optimizer.lr: [{rates}]
    """
    with pytest.raises(ConfigError) as caught:  # 30 of 120 cells train nothing
        plan_of(text)
    assert len(caught.value.problems) == 21
    assert "cell projector=frozen, language_model=frozen, optimizer.lr=1e-6" in str(caught.value)
    assert caught.value.problems[-1].endswith("… and 10 more")
