"""What other commands left in a report's folder is part of the report, in every way of writing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chip_core.utils.files import write_json
from orchestrator.report.attachments import HUMANS_FOLDER, find_attachments
from orchestrator.report.sections.human import human_metrics
from orchestrator.report.sections.representation import representation_blocks
from orchestrator.report.writers.files import write_report
from orchestrator.report.writers.html import render_page
from orchestrator.report.writers.latex import render_latex
from orchestrator.report.writers.markdown import render_markdown

from .conftest import FinishedStudy

Run = Callable[..., FinishedStudy]
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x03\x00\x00\x00\x01\x00"
METRICS = (
    "image_truth/cosine", "image_truth/euclidean", "truth_hallucination/cosine",
    "truth_hallucination/euclidean", "nearer_truth/cosine", "probe_auc",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("blank_figures")


def make_representation_data(study: FinishedStudy, seeds: int = 2) -> dict[str, Any]:
    """Figures of two rows: metric number k of chip, frozen is k + .5, a tenth to each side."""
    rows = []
    for name, of in (("base (untrained)", [None]), ("chip, frozen", list(range(seeds)))):
        trials = [trial for trial in study.plan.trials if trial.arm == name]
        rows.append(
            {
                "name": name,
                "seeds": of,
                "trials": {trial.name: trial.fingerprint for trial in trials},
                "figures": {
                    metric: {"value": place + 0.5, "low": place + 0.4, "high": place + 0.6}
                    for place, metric in enumerate(METRICS)
                },
                "by_seed": [],
            }
        )
    return {
        "set": "shapes", "items": 150, "pool": "mean", "alone": False, "layer": 4,
        "explained": [0.5, 0.2, 0.1], "rows": rows, "missing": ["dpo, frozen, seed 1"],
    }  # fmt: skip


def make_comparison_data(study: FinishedStudy) -> dict[str, Any]:
    """Of 36 items 18 are won, 10 ties, 8 lost; 36 of 40 could be judged."""
    arms = ["dpo, frozen", "chip, frozen"]

    def share(value: float, items: int) -> dict[str, Any]:
        return {"value": value, "interval": [value - 10, value + 10], "items": items}

    return {
        "export": "0123456789abcdef", "study": "small", "arms": arms, "benchmark": "shapes",
        "trials": {
            trial.name: trial.fingerprint for trial in study.plan.trials if trial.arm in arms
        },
        "pairs": 90, "same": 30,
        "sheets": [
            {"sheet": 1, "judged": 40, "questions": 40},
            {"sheet": 2, "judged": 0, "questions": 40},
        ],
        "choices": 40, "items": 40,
        "judged": share(90.0, 40), "win": share(50.0, 36), "tie": share(250 / 9, 36),
        "lose": share(200 / 9, 36), "chose_a": None,
        "preference": {
            "value": 250 / 9, "over_items": [2.0, 53.0], "over_seeds": [-8.0, 63.0], "p": 0.07,
            "by_seed": {"0": 20.0, "1": 36.0},
        },
        "agreement": {"alpha": 0.61, "interval": [0.4, 0.8], "units": 12},
    }  # fmt: skip


@pytest.fixture
def study_with_figure(make_finished_study: Run) -> FinishedStudy:
    study = make_finished_study()
    (study.folder / "figures").mkdir(parents=True)
    (study.folder / "figures/representation.png").write_bytes(PNG)
    write_json(study.folder / "representation.json", make_representation_data(study))
    write_json(study.folder / HUMANS_FOLDER / "shapes-01234567.json", make_comparison_data(study))
    return study


def find_table_rows(text: str, first: str) -> list[list[str]]:
    """Return the rows of a Markdown table that begin with a word."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_markdown_has_both_with_their_figures(study_with_figure: FinishedStudy) -> None:
    text = render_markdown(study_with_figure.make_report())
    part = text.split("## Representation\n")[1].split("\n## ")[0]
    (row,) = find_table_rows(part, "chip, frozen")
    assert row == ["chip, frozen", "2", *(f"{k}.500 ([{k}.400, {k}.600])" for k in range(6))]
    assert find_table_rows(part, "base")[0][1] == "—"
    assert "80 % of the variance" in part and "left out: dpo, frozen, seed 1" in part
    part = text.split("## Human evaluation\n")[1].split("\n## ")[0]
    assert "People preferred the answer of chip, frozen on 50.0 % of the items" in part
    assert find_table_rows(part, "win")[0] == ["win: chip, frozen", "50.0", "40.0 to 60.0", "36"]
    assert find_table_rows(part, "lose")[0][1] == "22.2"
    assert "Krippendorff's α (nominal) = 0.61, 95 % interval 0.40 to 0.80, on 12 items" in part
    # a third of all pairs were the same answers: (1 − 30/90) · 27.8
    assert "about +18.5 points" in part
    assert "sheet 1: 40 of 40 judged; sheet 2: nothing" in part
    assert "Made from other trainings" not in text


def test_page_and_latex_have_both_too(study_with_figure: FinishedStudy) -> None:
    report = study_with_figure.make_report()
    text = render_page(report)
    for name, title in (("representation", "Representation"), ("humans", "Human evaluation")):
        assert f'<a href="#{name}">{title}</a>' in text and f'<section id="{name}">' in text
    assert "50.0" in text.split('id="humans"')[1].split("</section>")[0]
    written = render_latex(report)
    assert r"\section*{Human evaluation}" in written and r"\section*{Representation}" in written
    assert r"\includegraphics" in written.split(r"\section*{Representation}")[1]
    assert r"Krippendorff's $\alpha$ (nominal) = 0.61" in written


def test_csv_has_the_trackers_names_and_figures(study_with_figure: FinishedStudy) -> None:
    files = {
        path.name: path
        for path in write_report(study_with_figure.make_report(), study_with_figure.folder)
    }
    lines = list(csv.DictReader(io.StringIO(files["humans.csv"].read_text())))
    shown = human_metrics(make_comparison_data(study_with_figure))
    assert {line["metric"]: float(line["value"]) for line in lines} == {
        name: value for name, value in shown.items() if not name.endswith((".low", ".high"))
    }
    win = next(line for line in lines if line["metric"].endswith("/win"))
    assert win["metric"] == "human/shapes/chip, frozen vs dpo, frozen/win"
    assert (win["value"], win["low"], win["unit"], win["items"]) == (
        "50.0",
        "40.0",
        "percent",
        "36",
    )
    assert shown["human/shapes/chip, frozen vs dpo, frozen/preference.low"] == -8.0  # over seeds
    lines = list(csv.DictReader(io.StringIO(files["representation.csv"].read_text())))
    auc = [line for line in lines if line["metric"] == "representation/probe_auc"]
    assert [(line["arm"], line["seeds"], float(line["value"])) for line in auc] == [
        ("base (untrained)", "0", 5.5), ("chip, frozen", "2", 5.5),
    ]  # fmt: skip


def test_figures_of_other_trainings_are_told(study_with_figure: FinishedStudy) -> None:
    found = make_comparison_data(study_with_figure)
    found["trials"]["chip, frozen, seed 1"] = "f" * 64
    write_json(study_with_figure.folder / HUMANS_FOLDER / "shapes-01234567.json", found)
    text = render_markdown(study_with_figure.make_report())
    said = "Made from other trainings than this report's (chip, frozen, seed 1)"
    assert text.count(said) == 1 and said in text.split("## Human evaluation")[1]


@pytest.mark.parametrize("broken", ["{", "[]", '{"arms": ["a", "b"], "benchmark": "x"}'])
def test_a_broken_file_is_told_and_fails_nothing(
    study_with_figure: FinishedStudy, broken: str
) -> None:
    (study_with_figure.folder / HUMANS_FOLDER / "shapes-01234567.json").write_text(broken)
    (study_with_figure.folder / "representation.json").write_text(broken)
    found = find_attachments(study_with_figure.folder, study_with_figure.plan)
    assert "humans.csv" not in found.tables and "representation.csv" not in found.tables
    text = render_markdown(study_with_figure.make_report())
    assert "representation.json is from another version or broken" in text
    assert "shapes-01234567.json is from another version or broken" in text


def test_nothing_beside_makes_no_section(make_finished_study: Run, tmp_path: Path) -> None:
    made = make_finished_study()
    found = find_attachments(tmp_path / "nowhere", made.plan)
    assert (found.sections, dict(found.tables)) == ((), {})


def test_a_name_that_looks_like_markup_is_text(study_with_figure: FinishedStudy) -> None:
    found = make_representation_data(study_with_figure)
    found["rows"][1]["name"] = "<script>x</script> | y"
    (picture, table, _) = representation_blocks(found, PNG, "representation")
    assert json.dumps(found)  # plain data
    write_json(study_with_figure.folder / "representation.json", found)
    report = study_with_figure.make_report()
    assert "<script" not in render_page(report) and "<script" not in render_markdown(report)
    assert picture.name == "representation" and len(table.rows) == 2
