"""Footnotes: what a reader of the tables has to know."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.plan.plan import Plan, Trial
from orchestrator.report.sections.notes import build_notes
from orchestrator.report.writers.latex import render_first_table
from orchestrator.report.writers.markdown import render_markdown

from ..conftest import STUDY, FinishedStudy, draw_noisy_score

Run = Callable[..., FinishedStudy]


def note_text(study: FinishedStudy) -> str:
    return "\n".join(build_notes(study.summary))


def test_what_every_report_says(make_finished_study: Run) -> None:
    text = note_text(make_finished_study())
    assert "intervals are marginal" in text
    assert "p-values corrected by Holm's method" in text
    assert "The study sets no smallest difference that matters (δ)" in text
    assert "computed from item outcomes, without constants that an official script adds" in text
    assert "\nshapes: 30 items.\n" in text
    assert "Common random numbers: r̂ = " in text


def test_exploratory_and_delta_and_published(make_finished_study: Run) -> None:
    more = (
        STUDY.replace("goal: minimize}", "smallest_difference: 1.5}")
        + "exploratory: true\npublished: [{source: A paper, arm: base, values: "
        + "{shapes/hal: 3}}]\n"
    )
    text = note_text(make_finished_study(more))
    assert "corrected by Benjamini–Hochberg's method over the arms, because the study is" in text
    assert "δ, the smallest difference that matters: 1.50 for shapes/chair_i." in text
    assert (
        "Published figures are shown next to the study's own and are not used in any computation."
        in text
    )


def test_what_was_left_out_is_counted(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float] | None:
        if trial.name == "chip, trained, seed 1" and metric == "hal":
            return 0.0, 0.0  # undefined
        return (
            None
            if trial.untrained is False and item == 3 and trial.seed == 2
            else draw_noisy_score(trial, item, metric)
        )

    text = note_text(make_finished_study(score=score, without=["dpo, trained, seed 2"]))
    assert "29 items (1 item left out, missing in some trial)" in text
    assert "Undefined (nothing to divide by), and left out of comparisons: shapes/hal of " in text
    assert "shapes/hal of chip, trained, seed 1" in text
    assert "Not there: dpo, trained, seed 2 (missing)." in text


def test_one_seed_in_the_words_of_the_statistics(make_finished_study: Run) -> None:
    text = note_text(make_finished_study(STUDY.replace("[0, 1, 2]", "[0]")))
    assert "Items only: this says nothing of training variance (12 differences)." in text
    assert "r̂" not in text


def test_flags_name_their_arms(make_finished_study: Run) -> None:
    gone = ["chip, trained, seed 1", "chip, trained, seed 2"]
    text = note_text(make_finished_study(without=gone))
    assert (
        "‡ a cell has one seed: its seed variance is borrowed from the others: "
        "chip, trained on shapes/chair_i." in text
    )


def test_fixed_items_are_said(make_finished_study: Run) -> None:
    made = make_finished_study()
    (
        made.attempt_folder(made.find_trial("dpo, frozen, seed 1")) / "scores/report-shapes.json"
    ).unlink()
    assert "\nshapes: benchmark items treated as fixed.\n" in note_text(made)


def test_cells_that_are_one_and_cells_that_are_gone(
    make_finished_study: Run, plan_of: Callable[..., Plan]
) -> None:
    made = make_finished_study()
    text = STUDY.replace("vision_encoder: [frozen, trained]", "objective.weights.segment: [1, 3]")
    made.plan = plan_of(text.replace("vision_encoder: frozen", "objective.weights.segment: 1"))
    written = note_text(made)
    assert "dpo, 1|3: represents 2 cells. objective.weights.segment has no effect: " in written
    assert "trials of cells or settings that the study file no longer has: in the" in written


def test_the_arms_table_has_its_footnotes(make_finished_study: Run, blank_figures: None) -> None:
    made = make_finished_study(without=["chip, trained, seed 2"])
    report = made.make_report()
    counts, hashes, missing = report.footnotes
    assert counts == "n: 3 seeds an arm (0, 1, 2); 30 items on shapes/chair_i."
    mark = made.plan.base.evaluations["report/shapes"][:12]
    assert hashes.startswith("Made from: model content the model; data source shapes; ")
    assert f"evaluation report/shapes {mark}; behaviour number " in hashes
    # four arms of three seeds and the untrained model
    assert missing == "Missing, 1 of 13 trials: chip, trained, seed 2 (missing)."
    first = render_markdown(report).split("## Arms against the baseline")[1].split("\n## ")[0]
    assert counts in first and missing in first
    assert f"% {counts}" in render_first_table(report)


def test_without_a_declared_metric_the_footnotes_count_seeds(
    make_finished_study: Run, blank_figures: None
) -> None:
    text = "\n".join(line for line in STUDY.splitlines() if not line.startswith("primary"))
    report = make_finished_study(text).make_report()
    assert report.footnotes[0] == "n: 3 seeds an arm (0, 1, 2)."
    assert len(report.footnotes) == 2
    assert report.footnotes[0] in render_markdown(report).split("## All figures")[1]


def test_who_answered_and_what_was_cut(make_finished_study: Run) -> None:
    def how(trial: Trial) -> dict[str, object]:
        first = trial.name == "dpo, frozen, seed 0"
        return {
            "protocol": "official",
            "scorer": "shapes-1",
            "generator": "vLLM 0.12.0",
            "parity": {
                "items": 64,
                "equal": 61 if first else 63,
                "least": 0.9,
                "prompts": {"compared": 0 if first else 64, "differ": 0},
                "adapter": {"differ": 0 if first else 9, "trained": 9, "bare": 0},
            },
            "pace": {"answers": 30, "answers_per_second": 3.0 if first else 12.0, "waited": 0.25},
            **({"cut": {"answers": 2, "of": 30, "max_new_tokens": 32}} if first else {}),
        }

    text = note_text(make_finished_study(how=how))
    assert "2 of 30 answers were cut at 32 tokens, in 1 of 13 trials" in text
    assert (
        "answered by vLLM 0.12.0; of the questions that transformers also answered, at least 61 "
        "of 64 " in text
    )
    assert "in 1 of 13 trials no such question could show whether the adapter was applied" in text
    assert "in 1 of 13 trials prompts could not be compared with transformers': the " in text
    assert "3 to 12 answers per second in a trial, up to 25% of the time waiting" in text
