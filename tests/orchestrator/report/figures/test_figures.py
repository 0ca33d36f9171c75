"""Figures: that they are drawn, and that what they draw is what the summary has."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.plan.plan import Trial
from orchestrator.report.figures.base import shorten_label
from orchestrator.report.figures.cost import draw_costs
from orchestrator.report.figures.coverage import coverage_pairs, draw_coverage
from orchestrator.report.figures.forest import draw_differences, draw_effects
from orchestrator.report.figures.response import draw_response, numeric_factors, response_curves
from orchestrator.report.figures.training import draw_training
from orchestrator.report.sections.costs import arm_costs
from orchestrator.report.sections.training import load_training_curves

from ..conftest import STUDY, FinishedStudy, draw_noisy_score

Run = Callable[..., FinishedStudy]
CHAIR = "shapes/chair_i"
WEIGHTS = (
    STUDY.replace("vision_encoder: [frozen, trained]", "objective.weights.segment: [0, 0.01, 1, 3]")
    .replace("vision_encoder: frozen", "objective.weights.segment: 0")
    .replace("goal: minimize}", "smallest_difference: 3}")
)


def score_by_weight(trial: Trial, item: int, metric: str) -> tuple[float, float]:
    weight = float(trial.params["objective.weights.segment"].split("|")[0]) if trial.params else 0
    return ((item * 7 + 5 * (trial.seed or 0)) % 3) / (1 + weight), 3.0


def test_every_figure_as_png_and_pdf(make_finished_study: Run) -> None:
    made = make_finished_study(WEIGHTS, score=score_by_weight)
    summary = made.summary
    curves = load_training_curves(made.plan, made.ledger, made.workdir)
    (factor,) = numeric_factors(summary)
    drawn = [
        draw_differences(summary, CHAIR),
        draw_effects(summary, CHAIR),
        draw_response(summary, factor, [CHAIR, "shapes/cover"]),
        draw_training(summary, curves),
        draw_coverage(summary, "shapes/cover", CHAIR),
        draw_costs(arm_costs(made.plan, made.ledger)),
    ]
    names = []
    for found in drawn:
        assert found is not None
        picture, pdf = found
        names.append(picture.name)
        assert picture.png.startswith(b"\x89PNG") and len(picture.png) > 5000
        assert pdf.startswith(b"%PDF")
        assert b"CreationDate" not in pdf  # the same study, the same file
    assert names == [
        "forest-shapes-chair_i", "effects-shapes-chair_i", "response-objective-weights-segment",
        "training", "coverage-shapes-chair_i-cover", "cost",
    ]  # fmt: skip


def test_a_response_curve_is_a_line_for_each_level_of_the_others(make_finished_study: Run) -> None:
    summary = make_finished_study(WEIGHTS, score=score_by_weight).summary
    (factor,) = numeric_factors(summary)
    found = {line.others: line for line in response_curves(summary, factor, CHAIR)}
    assert list(found) == ["dpo", "chip"]
    assert [x for x, _ in found["chip"].points] == [0, 0.01, 1, 3]
    rows = {row.name: row.figures[CHAIR] for row in summary.rows}
    assert [figure for _, figure in found["chip"].points][1:] == [
        rows[f"chip, {weight}"] for weight in ("0.01", "1", "3")
    ]
    # under dpo the weight has no effect: one trial stands at all four levels
    assert {figure.mean for _, figure in found["dpo"].points} == {rows["dpo, 0|0.01|1|3"].mean}


def test_factors_of_words_have_no_curve(make_finished_study: Run) -> None:
    assert numeric_factors(make_finished_study().summary) == []


def test_one_factor_has_no_effects_beside_its_arms(make_finished_study: Run) -> None:
    text = STUDY.replace("  vision_encoder: [frozen, trained]\n", "")
    summary = make_finished_study(text.replace(", vision_encoder: frozen", "")).summary
    assert draw_effects(summary, CHAIR) is None


def test_the_primary_metric_stands_against_what_it_is_traded_for(make_finished_study: Run) -> None:
    assert coverage_pairs(make_finished_study().summary) == [("shapes/cover", CHAIR)]
    text = STUDY.replace("shapes/chair_i", "shapes/hal")
    assert coverage_pairs(make_finished_study(text).summary) == [("shapes/cover", "shapes/hal")]


def test_coverage_is_of_descriptions(make_finished_study: Run) -> None:
    made = make_finished_study(STUDY.replace("[shapes]", "[pope, amber, mmhal, chair, shapes]"))
    assert coverage_pairs(made.summary) == [
        ("shapes/cover", CHAIR),
        ("amber/cover", "amber/chair"),
        ("chair/recall", "chair/chair_s"),
    ]


@pytest.mark.usefixtures("blank_figures")
def test_names_with_odd_characters_are_drawn_as_text(make_finished_study: Run) -> None:
    text = STUDY.replace(
        "  objective: [dpo, chip]",
        "  objective:\n    dpo: {objective: dpo}\n    '$x^2$ <b>\\n 漢字 ﷽': {objective: chip}",
    )
    summary = make_finished_study(text, score=draw_noisy_score).summary
    assert draw_differences(summary, CHAIR) is not None
    assert draw_coverage(summary, "shapes/cover", CHAIR) is not None
    assert shorten_label("a\n b" + "c" * 100) == "a b" + "c" * 40 + "…"
