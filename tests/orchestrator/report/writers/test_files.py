"""What is written, read again: every figure is the summary's, and the tracker's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.report.results import build_arm_views
from orchestrator.report.writers.exports import arms_csv, effects_csv, summary_to_json, values_csv
from orchestrator.report.writers.files import write_report
from orchestrator.report.writers.markdown import render_markdown

from ..conftest import STUDY, FinishedStudy
from ..table_readers import read_csv, read_tables

Run = Callable[..., FinishedStudy]
CHAIR = "shapes/chair_i"
MORE = (
    STUDY.replace("goal: minimize}", "smallest_difference: 4}")
    + """
secondary: [shapes/cover]
published:
  - source: A paper, table 3
    arm: {objective: chip, vision_encoder: frozen}
    values: {shapes/chair_i: 4.25, shapes/hal: 9}
  - {source: Another, arm: base, values: {shapes/chair_i: 11}}
"""
)

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_markdown_read_again_has_the_summarys_figures(make_finished_study: Run) -> None:
    made = make_finished_study(MORE)
    report = made.make_report()
    found = read_tables(render_markdown(report))
    first = {row["objective, vision_encoder"].strip("*"): row for row in found[0]}
    for row in report.summary.rows[2:]:
        figure = row.figures[CHAIR]
        assert figure.comparison is not None and figure.interval is not None
        line = first[row.name]
        mean, sd = line["mean ± sd"].strip("*").split(" ± ")
        low, high = json.loads(line["95 % interval"])
        shown = [float(mean), float(sd), float(line["difference (points)"]), low, high]
        meant = [figure.mean, figure.sd, figure.difference, *figure.interval]
        assert shown == [round(float(value or 0), 2) for value in meant]
        verdict = re.sub(r"[ †‡*]+$", "", line["verdict"].removeprefix("**"))
        assert verdict == figure.comparison.verdict
        p, shown_p = figure.comparison.p_adjusted, line["p (Holm)"]
        assert p is not None
        assert p < 0.001 if shown_p == "< 0.001" else abs(float(shown_p) - p) <= 0.005
    whole = next(table for table in found if "hal % ↓" in table[0])
    for row in report.summary.rows:
        figure = row.figures["shapes/hal"]
        line = next(
            line for line in whole if line["objective, vision_encoder"].startswith(row.name)
        )
        assert line["hal % ↓"].startswith(f"{figure.mean:.2f}")


def test_bold_is_what_the_verdict_allows(make_finished_study: Run) -> None:
    report = make_finished_study(MORE).make_report()
    bold = re.findall(r"\| \*\*(.+?)\*\* \|", render_markdown(report))
    assert "chip, frozen" in bold
    assert not {"dpo, trained", "chip, trained", "dpo, frozen (baseline)"} & set(bold)


def test_published_figures_stand_beside_ours_and_enter_nothing(make_finished_study: Run) -> None:
    with_them, without = (
        make_finished_study(MORE),
        make_finished_study(MORE[: MORE.index("published")]),
    )
    found = read_tables(render_markdown(with_them.make_report()))
    names = [row["objective, vision_encoder"] for row in found[0]]
    place = names.index("published: A paper, table 3")
    assert names[place - 1] == "**chip, frozen**"
    assert names[1] == "published: Another"
    assert found[0][place]["mean ± sd"] == "4.25"
    assert found[0][place]["verdict"] == found[0][place]["p (Holm)"] == ""
    assert arms_csv(with_them.summary) == arms_csv(without.summary)
    assert summary_to_json(with_them.summary)["published"][1] == {
        "source": "Another", "arm": None, "values": {CHAIR: 11},
    }  # fmt: skip


def test_csv_read_again_equals_what_the_tracker_is_given(make_finished_study: Run) -> None:
    summary = make_finished_study(MORE, without=["chip, trained, seed 2"]).summary
    lines = {(line["arm"], line["metric"]): line for line in read_csv(arms_csv(summary))}
    views = build_arm_views(summary)
    assert len(views) == 4
    for view in views:
        for metric in summary.metrics:
            line = lines[view.arm.name, metric]
            assert line["objective"] == view.arm.params["objective"]
            columns = {
                "": "mean", ".sd": "sd", ".low": "low", ".high": "high",
                ".difference": "difference", ".p_adjusted": "p_adjusted",
            }  # fmt: skip
            given = {
                column: view.figures.get(f"{metric}{suffix}") for suffix, column in columns.items()
            }
            assert given == {
                column: float(line[column]) if line[column] else None for column in given
            }
        verdict = lines[view.arm.name, CHAIR]["verdict"]
        assert view.tags == {"chip.verdict": verdict or None}
        assert view.status == ("KILLED" if view.arm.name == "chip, trained" else "FINISHED")
    assert lines["dpo, frozen", CHAIR]["verdict"] == ""
    assert lines["chip, frozen", CHAIR]["verdict"] == "better"


def test_the_other_csv_files(make_finished_study: Run) -> None:
    summary = make_finished_study(MORE).summary
    values = read_csv(values_csv(summary))
    assert len(values) == (1 + 4 * 3) * 4
    one = next(
        line for line in values
        if (line["arm"], line["seed"], line["metric"]) == ("chip, frozen", "1", CHAIR)
    )  # fmt: skip
    assert float(one["value"]) == summary.rows[3].figures[CHAIR].values[1]
    effects = read_csv(effects_csv(summary))
    assert [(line["metric"], line["kind"]) for line in effects[:3]] == [
        (CHAIR, "main"), (CHAIR, "main"), (CHAIR, "interaction"),
    ]  # fmt: skip
    main = summary.effects[CHAIR].main[0]
    assert main.contrast is not None
    assert float(effects[0]["difference"]) == main.contrast.estimate
    assert (effects[0]["used"], effects[0]["combinations"]) == ("2", "2")


def test_json_has_everything_a_verdict_rests_on(make_finished_study: Run) -> None:
    summary = make_finished_study(MORE).summary
    found = json.loads(json.dumps(summary_to_json(summary), allow_nan=False))
    assert found["answer"].startswith("On shapes/chair_i")
    assert found["metrics"][CHAIR] == {
        "unit": "percent", "goal": "minimize", "role": "primary", "smallest_difference": 4,
        "items": 30, "items_left_out": 0,
    }  # fmt: skip
    arm: dict[str, Any] = next(arm for arm in found["arms"] if arm["arm"] == "chip, frozen")
    figure = arm["figures"][CHAIR]
    comparison = summary.rows[3].figures[CHAIR].comparison
    assert comparison is not None and comparison.contrast is not None
    assert figure["verdict"] == "better"
    assert figure["p"] == comparison.contrast.p
    assert figure["p_adjusted"] == comparison.p_adjusted
    assert figure["comparison"]["v_seed"] == comparison.contrast.v_seed
    assert found["effects"][CHAIR]["interactions"][0]["used"] == 1


def test_the_files_of_a_report(make_finished_study: Run) -> None:
    made = make_finished_study(MORE)
    figures = made.folder / "figures"
    figures.mkdir(parents=True)
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x03\x00\x00\x00\x01\x00"
    for given in ("rejected-images.png", "representation-alone.png", "representation-alone.pdf"):
        (figures / given).write_bytes(png)
    (figures / "response-of-a-factor-that-is-gone.pdf").write_bytes(b"old")
    files = write_report(made.make_report(), made.folder)
    names = [str(path.relative_to(made.folder)) for path in files]
    assert names[0] == "report.html"
    assert {
        "report.md", "report.tex", "table.tex", "report.csv", "values.csv", "effects.csv",
        "provenance.json", "figures/forest-shapes-chair_i.png", "figures/training.pdf",
        "figures/rejected-images.png",
    } <= set(names)  # fmt: skip
    assert all(path.is_file() for path in files)
    assert not (figures / "response-of-a-factor-that-is-gone.pdf").exists()
    assert (figures / "representation-alone.pdf").exists()
    text = (made.folder / "report.md").read_text()
    assert "## Rejected images" in text
    assert "## Representation of descriptions alone" in text
    before = {path: path.read_bytes() for path in files}
    assert {
        path: path.read_bytes() for path in write_report(made.make_report(), made.folder)
    } == before


def test_provenance_of_every_trial(make_finished_study: Run) -> None:
    made = make_finished_study(without=["chip, trained, seed 2"])
    report = made.make_report()
    trials = {entry["trial"]: entry for entry in report.provenance["trials"]}
    assert len(trials) == 13
    entry = trials["chip, frozen, seed 1"]
    trial = made.find_trial("chip, frozen, seed 1")
    assert entry["fingerprint"] == trial.fingerprint
    assert entry["config"] == trial.config.model_dump(mode="json")
    assert entry["factors"] == {"objective": "chip", "vision_encoder": "frozen"}
    assert entry["model"] == {"content": "the model"}
    assert entry["data"] == {"source": "shapes"}
    assert entry["figures"][CHAIR] == report.summary.rows[3].figures[CHAIR].values[1]
    (attempt,) = entry["attempts"]
    assert attempt["version"] and attempt["ended"] >= attempt["started"]
    assert trials["chip, trained, seed 2"]["attempts"] == []
    assert trial.fingerprint[:12] in render_markdown(report)
