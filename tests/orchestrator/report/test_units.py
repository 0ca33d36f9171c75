"""A rate is shown in percent and a difference in points, whatever unit a scorer prints."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from chip_core.evaluation.task import MetricInfo
from chip_core.results import Evaluation, TrialResult
from chip_core.utils.files import write_json
from orchestrator.plan.plan import Trial
from orchestrator.report.results import build_arm_views
from orchestrator.report.units import shown_unit_scale, to_shown_unit
from orchestrator.report.writers.exports import arms_csv, summary_to_json, values_csv
from orchestrator.report.writers.markdown import render_markdown
from orchestrator.report.writers.plan import trial_table

from .conftest import FinishedStudy

STUDY = """
study: yes_or_no
recipe: shapes
factors:
  objective: [dpo, chip]
seeds: [0, 1]
baseline: {objective: dpo}
benchmarks:
  report: [pope]
primary: {metric: pope/random/accuracy, goal: maximize, smallest_difference: 30}
"""
ACCURACY = "pope/random/accuracy"
#: Right answers of ten questions: dpo .6 and .7, chip .8 and .9.
RIGHT = {("dpo", 0): 6, ("dpo", 1): 7, ("chip", 0): 8, ("chip", 1): 9}

pytestmark = pytest.mark.usefixtures("blank_figures")


def record_trial(made: FinishedStudy, trial: Trial) -> None:
    right = RIGHT.get((trial.arm, trial.seed or 0), 5)
    folder = made.attempt_folder(trial)
    items = [
        {"item": f"q/{number}", "numerator": float(number < right), "denominator": 1.0}
        for number in range(10)
    ]
    scored = {"name": "random/accuracy", "value": right / 10, "items": items}
    write_json(folder / "scores/pope.json", {"metrics": [scored]})
    (folder / "pope.jsonl").write_text("")
    evaluation = Evaluation(
        metrics={ACCURACY: right / 10}, items=10, scores="scores/pope.json", responses="pope.jsonl"
    )
    result = TrialResult(steps=1, evaluations={"report/pope": evaluation}, seconds={})
    where = str(folder.relative_to(made.workdir))
    made.ledger.record_result(trial, made.plan.study.name, 1, where, result)


@pytest.fixture
def finished_study(
    make_finished_study: Callable[..., FinishedStudy], plan_of: Callable[..., object]
) -> FinishedStudy:
    study = make_finished_study(
        STUDY, without=["base", *(f"{arm}, seed {seed}" for arm, seed in RIGHT)]
    )
    for trial in study.plan.trials:
        record_trial(study, trial)
    return study


def test_which_units_are_shown_otherwise() -> None:
    fraction = MetricInfo(unit="fraction", goal="minimize")
    assert (to_shown_unit(fraction), shown_unit_scale(fraction)) == (
        replace(fraction, unit="percent"),
        100.0,
    )
    for unit in ("percent", "points", "words"):
        info = MetricInfo(unit=unit, goal="maximize")
        assert (to_shown_unit(info), shown_unit_scale(info)) == (info, 1.0)


def test_a_fraction_is_in_percent_in_every_output(finished_study: FinishedStudy) -> None:
    # dpo: (60 + 70)/2; chip: (80 + 90)/2; 20 points apart; sd of two that differ by 10: 10/√2
    summary = finished_study.summary
    figure = summary.rows[2].figures[ACCURACY]
    assert summary.metrics[ACCURACY].unit == "percent"
    assert (figure.mean, figure.difference) == pytest.approx((85.0, 20.0))
    lines = {
        line["arm"]: line
        for line in csv.DictReader(io.StringIO(arms_csv(summary)))
        if line["metric"] == ACCURACY
    }
    chip = lines["chip"]
    assert (chip["unit"], float(chip["mean"])) == ("percent", pytest.approx(85))
    assert float(chip["sd"]) == pytest.approx(10 / 2**0.5)
    assert float(chip["difference"]) == pytest.approx(20)
    values = list(csv.DictReader(io.StringIO(values_csv(summary))))
    assert [
        float(line["value"]) for line in values
        if line["metric"] == ACCURACY and line["arm"] == "chip"
    ] == pytest.approx([80, 90])  # fmt: skip
    text = render_markdown(finished_study.make_report())
    assert "| chip | 2 | 85.00 ± 7.07 | +20.00 |" in text.replace("**", "")
    assert "difference (points)" in text and f"{ACCURACY} % ↑" in text
    found = json.loads(json.dumps(summary_to_json(summary)))
    assert found["arms"][2]["figures"][ACCURACY]["values"] == pytest.approx({"0": 80, "1": 90})


def test_the_tracker_keeps_the_scorers_unit_and_differences_in_points(
    finished_study: FinishedStudy,
) -> None:
    """A trial's own figure is the official one; its arm's mean stands beside it in charts."""
    view = next(view for view in build_arm_views(finished_study.summary) if view.arm.name == "chip")
    trials = [finished_study.ledger[trial.fingerprint].metrics(trial) for trial in view.arm.trials]
    assert [metrics[ACCURACY] for metrics in trials] == [0.8, 0.9]
    assert view.figures[ACCURACY] == pytest.approx(0.85)
    assert view.figures[f"{ACCURACY}.sd"] == pytest.approx(0.1 / 2**0.5)
    assert view.figures[f"{ACCURACY}.difference"] == pytest.approx(20)
    low, high = view.figures[f"{ACCURACY}.low"], view.figures[f"{ACCURACY}.high"]
    assert low < 20 < high


def test_the_status_table_shows_percent(finished_study: FinishedStudy) -> None:
    table = trial_table(finished_study.plan, finished_study.workdir)
    assert table.columns[-1].header == f"{ACCURACY} % ↑"
    # base, then each seed's arms in turn
    assert [str(cell) for cell in table.columns[-1].cells] == [
        "50.00", "60.00", "80.00", "70.00", "90.00",
    ]  # fmt: skip


def test_the_smallest_difference_is_in_points(finished_study: FinishedStudy) -> None:
    # δ = 30 points: within it is what 20 points with a narrow interval would be; 0.3 would not.
    metric = finished_study.summary.compared[ACCURACY].results.metric(ACCURACY)
    assert metric.smallest_difference == 30
    assert [float(values.mean()) for values in metric.values] == pytest.approx([65, 85])


def test_without_item_outcomes_too(finished_study: FinishedStudy) -> None:
    (
        finished_study.attempt_folder(finished_study.find_trial("chip, seed 0"))
        / "scores/pope.json"
    ).unlink()
    figure = finished_study.summary.rows[2].figures[ACCURACY]
    assert figure.difference == pytest.approx(20)
