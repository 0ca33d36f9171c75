"""The answer in one sentence; that nothing can be said is an answer."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.plan.plan import Trial
from orchestrator.report.formatting import format_number, format_signed, join_names
from orchestrator.report.layout import ChangedItems
from orchestrator.report.results import build_arm_views
from orchestrator.report.sections.answer import answer_sentence
from orchestrator.report.sections.arms import verdict_table

from ..conftest import STUDY, FinishedStudy, draw_noisy_score

Run = Callable[..., FinishedStudy]
AGAINST = "n shapes/chair_i (lower is better), against objective = dpo, vision_encoder = frozen: "


def test_what_is_better_comes_first_with_its_interval(make_finished_study: Run) -> None:
    summary = make_finished_study().summary
    figure = summary.rows[3].figures["shapes/chair_i"]
    assert figure.interval is not None and figure.difference is not None
    low, high = figure.interval
    said = answer_sentence(summary)
    assert said.startswith(
        f"O{AGAINST}chip, frozen ({format_signed(figure.difference)} points; 95 % interval "
        f"{format_signed(low)} "
        f"to {format_signed(high)}) is better; "
    )
    # dpo, trained and chip, trained differ by luck alone
    assert "dpo, trained" in said.split(" is better; ")[1]
    assert "inconclusive because of too few" in said
    assert said.endswith(".")
    assert said.count(".\u0020") == 0  # one sentence


def test_an_arm_that_is_better_and_says_less_is_told(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        if metric != "cover":
            return draw_noisy_score(trial, item, metric)
        silent = trial.arm == "chip, frozen" and (item + (trial.seed or 0)) % 3 == 0
        return (1.0 if silent else 3.0 - (item % 10 == 0), 3.0)

    summary = make_finished_study(score=score).summary
    cover = summary.rows[3].figures["shapes/cover"]
    assert cover.interval is not None and cover.interval[1] < 0
    low, high = map(format_signed, cover.interval)
    assert answer_sentence(summary).endswith(
        f"; by shapes/cover, chip, frozen ({format_signed(cover.difference or 0)} points; 95 % "
        f"interval {low} to {high}) names fewer of the objects in the image."
    )


def test_coverage_is_not_told_where_nothing_is_better_or_it_is_kept(
    make_finished_study: Run,
) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        kept = metric != "cover"
        less = trial.arm == "chip, trained" and (item + (trial.seed or 0)) % 3 == 0
        return draw_noisy_score(trial, item, metric) if kept else (1.0 if less else 3.0, 3.0)

    # chip, frozen is better and covers as much; chip, trained covers less and is not better.
    assert "fewer of the objects in the image" not in answer_sentence(
        make_finished_study(score=score).summary
    )


def test_worse_where_the_metric_is_to_be_high(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        if metric != "cover":
            return draw_noisy_score(trial, item, metric)
        poor = trial.arm == "chip, frozen"
        seed = trial.seed or 0
        return (1.0 if poor and (item + seed) % 4 else 3.0 - ((item + seed) % 9 == 0), 3.0)

    text = STUDY.replace("{metric: shapes/chair_i, goal: minimize}", "shapes/cover")
    said = answer_sentence(make_finished_study(text, score=score).summary)
    assert said.startswith("On shapes/cover (higher is better), against ")
    assert ": chip, frozen (−" in said
    assert ") is worse; " in said


def test_one_seed_gives_no_answer(make_finished_study: Run) -> None:
    said = answer_sentence(make_finished_study(STUDY.replace("[0, 1, 2]", "[0]")).summary)
    assert said.startswith(f"No answer: o{AGAINST}")
    assert said.endswith("have no verdict, since one seed says nothing about training variance.")
    assert "better;" not in said and "worse" not in said


def test_without_a_primary_metric_nothing_is_judged(make_finished_study: Run) -> None:
    text = STUDY.replace("primary: {metric: shapes/chair_i, goal: minimize}\n", "")
    said = answer_sentence(make_finished_study(text).summary)
    assert said.startswith("No answer: the study declares no primary metric")


def test_what_is_missing_is_said(make_finished_study: Run) -> None:
    gone = [f"dpo, frozen, seed {seed}" for seed in range(3)]
    assert answer_sentence(make_finished_study(without=gone).summary) == (
        "No answer yet: the baseline has no figure of shapes/chair_i."
    )


def test_a_missing_trial_is_counted(make_finished_study: Run) -> None:
    said = answer_sentence(make_finished_study(without=["chip, trained, seed 2"]).summary)
    assert said.endswith(" (1 trial is missing).")


def test_an_exploratory_study_says_so(make_finished_study: Run) -> None:
    said = answer_sentence(make_finished_study(STUDY + "exploratory: true\n").summary)
    assert said.startswith(f"Exploratory: o{AGAINST}")


def test_no_clear_difference_needs_a_delta(make_finished_study: Run) -> None:
    def equal(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        # the same but for one item in 30, in turns: differences of at most 100/90 points
        shift = (item == 7 + (trial.seed or 0) + len(trial.arm)) * 1.0
        return float(item % 3 == 0) + shift, 3.0

    wide = STUDY.replace("goal: minimize}", "smallest_difference: 20}")
    said = answer_sentence(make_finished_study(wide, score=equal).summary)
    assert "show no clear difference (within ±δ)" in said
    assert "no clear difference" not in answer_sentence(
        make_finished_study(STUDY, score=equal).summary
    )


def test_figures_are_written_with_a_true_minus() -> None:
    assert (format_number(-1.234), format_signed(0.5), format_signed(-0.005)) == (
        "−1.23",
        "+0.50",
        "−0.01",
    )


def test_an_effect_that_holds_on_average_is_said(make_finished_study: Run) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        fewer = trial.arm.startswith("chip") and item % 7
        return (0.0 if fewer else draw_noisy_score(trial, item, metric)[0]), 3.0

    summary = make_finished_study(score=score).summary
    (effect, _) = summary.effects["shapes/chair_i"].main
    assert effect.used == 2 and effect.contrast is not None
    assert (
        answer_sentence(summary)
        .split("; averaged over the other factors, ")[1]
        .startswith(
            f"objective: dpo → chip ({format_signed(effect.contrast.estimate)} points; 95 % "
            "interval "
        )
    )


def test_names_in_a_list_stay_apart() -> None:
    assert join_names(["a"]) == "a"
    assert join_names(["a", "b", "c"]) == "a, b and c"
    assert (
        join_names(["dpo, frozen", "dpo, trained", "chip"]) == "dpo, frozen; dpo, trained and chip"
    )
    assert join_names([str(n) for n in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"


def test_a_placebo_is_warned_of_where_it_would_have_been_an_effect_and_never_wins(
    make_finished_study: Run,
) -> None:
    def score(trial: Trial, item: int, metric: str) -> tuple[float, float]:
        if trial.arm == "placebo" and metric == "chair_i":
            return float((item + (trial.seed or 0)) % 11 == 0), 3.0  # as good as chip, frozen
        return draw_noisy_score(trial, item, metric)

    quiet = make_finished_study(STUDY + "placebo: true\n").summary
    without = make_finished_study().summary
    assert answer_sentence(quiet) == answer_sentence(without)  # as if it were not there
    shown = quiet.rows[-1]
    assert shown.name == "placebo" and shown.figures["shapes/chair_i"].interval is not None

    loud = make_finished_study(STUDY + "placebo: true\n", score=score)
    summary = loud.summary
    figure = summary.rows[-1].figures["shapes/chair_i"]
    assert figure.interval is not None and figure.interval[1] < 0
    said, warned = answer_sentence(summary).split(" Warning: ")
    assert said == answer_sentence(without)
    low, high = (format_signed(end) for end in figure.interval)
    assert warned.startswith(
        "the placebo, which is the baseline with other seeds, differs from it on shapes/chair_i "
        f"by {format_signed(figure.difference or 0.0)} points (95 % interval {low} to {high}): it "
        "would have been called an effect."
    )
    table = verdict_table(summary, "shapes/chair_i")
    row = table.rows[-1].cells
    assert row[0].text == "placebo (baseline, other seeds)"
    assert row[-1].text.startswith("false positive: better") and row[-1].tone == "open"
    assert not any(cell.bold for cell in row)
    (view,) = [view for view in build_arm_views(summary) if view.arm.placebo]
    assert view.tags["chip.verdict"] == "false positive: better"
    assert not any(item.arm == "placebo" for item in _list_changed_items(loud))


def _list_changed_items(run: FinishedStudy) -> list[ChangedItems]:
    sections = run.make_report().sections
    return [one for part in sections for one in part.blocks if isinstance(one, ChangedItems)]
