"""People against the judge: agreement, and the judge's figures as people correct them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from chip_core.utils.errors import UserError
from orchestrator.analysis import prediction_powered_mean
from orchestrator.human_eval.assignment import draw_sheets
from orchestrator.human_eval.comparison import build_comparison, comparison_to_json
from orchestrator.human_eval.judge import JudgeValues, compute_agreement, load_judge_values
from orchestrator.human_eval.labels import (
    compute_label_figures,
    draw_labels,
    labels_to_json,
    read_labels,
)
from orchestrator.human_eval.pairs import load_answer_pool
from orchestrator.human_eval.replies import SheetReplies
from orchestrator.plan.plan import Plan
from orchestrator.report.attachments import find_attachments
from orchestrator.state.ledger import Ledger

ITEMS = [f"test/{number}" for number in range(40)]


def make_answers(arm: str, seed: int) -> dict[str, str]:
    """Make answers on whose first 4 items the arms agree."""
    return {
        item: "nothing" if place < 4 else f"{arm} {seed} {item}" for place, item in enumerate(ITEMS)
    }


def make_hal_scores(arm: str, seed: int) -> dict[str, float]:
    """By the judge dpo hallucinates on two items of four, chip on one of four, moved by seed."""
    every = {"dpo": (0, 1), "chip": (0,)}[arm]
    return {item: float((place + seed) % 4 in every) for place, item in enumerate(ITEMS)}


@pytest.fixture
def ledger(plan: Plan, write_answers: Callable[..., Ledger]) -> Ledger:
    return write_answers(plan, make_answers, make_hal_scores)


@pytest.fixture
def judge(plan: Plan, ledger: Ledger, workdir: Path) -> JudgeValues:
    return load_judge_values(plan, ledger, workdir, benchmark="shapes", metric="hal")


def fill_labels(text: str, label: Callable[[Mapping[str, str]], object], file: Path) -> Path:
    rows = list(csv.DictReader(io.StringIO(text)))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "label": label(row)} for row in rows)
    return file


def test_agreement_is_cohens_kappa() -> None:
    # 3 of 4 the same: p_o .75; p_e = 2/4·3/4 + 2/4·1/4 = .5; κ = .25/.5
    found = compute_agreement([(1, 1), (1, 1), (0, 0), (0, 1)])
    assert (found.share, found.kappa, found.judgements) == (0.75, 0.5, 4)
    assert compute_agreement([(1, 1), (1, 1)]).kappa is None


def test_choices_on_sheets_correct_the_judges_win_less_lose(
    plan: Plan, ledger: Ledger, judge: JudgeValues, workdir: Path
) -> None:
    pool = load_answer_pool(plan, ledger, workdir, arms=("dpo", "chip"), benchmark="shapes")
    key = draw_sheets(pool, study="small", items=20, annotators=1, overlap=None, seed=0)
    # Lower is better.
    verdicts: dict[tuple[str, int], int] = {
        (item, seed): int(make_hal_scores("dpo", seed)[item] - make_hal_scores("chip", seed)[item])
        for seed in (0, 1)
        for item in ITEMS[4:]
    }
    # People say as the judge, but for the first three: a tie where the judge is for the second arm.
    choices: list[str | None] = []
    people = {}
    for entry in key.sheets[0]:
        verdict = verdicts[entry.item, entry.seed]
        if verdict == 1 and sum(one != verdicts[at] for at, one in people.items()) < 3:
            verdict = 0
        people[entry.item, entry.seed] = verdict
        choices.append("tie" if verdict == 0 else "b" if entry.left == 0 else "a")
    reply = SheetReplies(
        file=Path("r.json"), export=key.export, sheet=1, annotator="x", choices=tuple(choices)
    )
    found = comparison_to_json(build_comparison(key, [reply], (judge, pool)))["judge"]
    same = sum(people[at] == verdicts[at] for at in people)
    assert same == 17
    assert found["agreement"]["value"] == 100 * same / 20
    assert found["metric"] == "shapes/hal"
    every = [(verdicts[item, 0] + verdicts[item, 1]) / 2 for item in ITEMS[4:]]
    expected = prediction_powered_mean(
        every,
        [ITEMS.index(item) - 4 for item, _ in people],
        list(people.values()),
        [verdicts[at] for at in people],
        paired=True,
    )
    assert found["items"] == 36 and found["labelled"] == 20
    assert found["raw"]["value"] == pytest.approx(100 * sum(every) / 36)
    assert found["corrected"]["value"] == pytest.approx(100 * expected.corrected.value)
    assert expected.corrected.interval is not None
    assert found["corrected"]["interval"] == pytest.approx(
        [100 * bound for bound in expected.corrected.interval]
    )
    assert comparison_to_json(build_comparison(key, [reply]))["judge"] is None


def test_answers_are_drawn_blind_and_in_pairs(
    plan: Plan, ledger: Ledger, judge: JudgeValues, workdir: Path
) -> None:
    text, asked = draw_labels(plan, ledger, workdir, judge, arms=(), items=10, seed=0)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert asked == 10 and len(rows) == 20
    assert rows[0].keys() == {"id", "item", "question", "answer", "label"}
    assert set(Counter(row["item"] for row in rows).values()) == {2}
    told = [row["answer"].split() for row in rows if row["answer"] != "nothing"]
    seeds = {item: {seed for _, seed, of in told if of == item} for _, _, item in told}
    assert all(len(of_item) == 1 for of_item in seeds.values())  # both arms' of one seed
    assert set.union(*seeds.values()) == {"0", "1"}
    again = {"arms": (), "items": 10}
    assert draw_labels(plan, ledger, workdir, judge, seed=0, **again)[0] == text
    assert draw_labels(plan, ledger, workdir, judge, seed=1, **again)[0] != text


def test_labels_correct_each_arm_and_the_difference(
    plan: Plan, ledger: Ledger, judge: JudgeValues, workdir: Path, tmp_path: Path
) -> None:
    text, _ = draw_labels(plan, ledger, workdir, judge, arms=(), items=24, seed=0)

    def label(row: Mapping[str, str]) -> object:
        """People see what the judge sees, and find fault with one answer of eight more."""
        place = ITEMS.index(row["item"])
        arm, seed = (row["answer"].split() + ["", ""])[:2]
        if arm == "nothing":
            return ""
        return int(make_hal_scores(arm, int(seed))[row["item"]] or place % 8 == 5)

    file = fill_labels(text, label, tmp_path / "labels.csv")
    labels = read_labels([file], plan, judge)
    found = labels_to_json(compute_label_figures(plan, judge, labels))
    assert (found["metric"], found["unit"], found["baseline"]) == ("shapes/hal", "percent", "dpo")
    dpo, chip = found["arms"]
    assert (dpo["arm"], dpo["raw"]["value"], chip["raw"]["value"]) == ("dpo", 50, 25)
    assert dpo["difference"] is None
    some = sorted(labels["chip"])
    own = {item: next(iter(seeds)) for item, seeds in labels["chip"].items()}
    expected = prediction_powered_mean(
        [
            (make_hal_scores("chip", 0)[item] + make_hal_scores("chip", 1)[item]) / 2
            for item in ITEMS
        ],
        [ITEMS.index(item) for item in some],
        [labels["chip"][item][own[item]][0] for item in some],
        [make_hal_scores("chip", own[item])[item] for item in some],
    )
    assert chip["corrected"]["value"] == pytest.approx(100 * expected.corrected.value)
    assert chip["corrected"]["value"] > 25
    assert chip["labelled"] == len(some) and chip["items"] == 40
    assert chip["difference"]["raw"]["value"] == -25
    assert expected.corrected.interval is not None
    assert chip["corrected"]["interval"] == pytest.approx(
        [100 * bound for bound in expected.corrected.interval]
    )

    def apart(of: Callable[[str, int, str], float]) -> list[float]:
        return [of("chip", own[item], item) - of("dpo", own[item], item) for item in both]

    both = [item for item in some if item in labels["dpo"]]
    difference = prediction_powered_mean(
        [
            fmean(
                make_hal_scores("chip", seed)[item] - make_hal_scores("dpo", seed)[item]
                for seed in (0, 1)
            )
            for item in ITEMS
        ],
        [ITEMS.index(item) for item in both],
        apart(lambda arm, seed, item: labels[arm][item][seed][0]),
        apart(lambda arm, seed, item: make_hal_scores(arm, seed)[item]),
        paired=True,
    )
    assert difference.corrected.interval is not None
    assert chip["difference"]["corrected"]["interval"] == pytest.approx(
        [100 * bound for bound in difference.corrected.interval]
    )
    # Named by item, arm and seed the same labels say the same; more of one answer are averaged.
    rows = [
        {"item": item, "arm": arm, "seed": seed, "label": label}
        for arm, items in labels.items()
        for item, seeds in items.items()
        for seed, given in seeds.items()
        for label in [*given, *given]
    ]
    lines = tmp_path / "labels.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    twice = labels_to_json(compute_label_figures(plan, judge, read_labels([lines], plan, judge)))
    assert twice["arms"][1]["corrected"] == chip["corrected"]
    assert twice["arms"][1]["agreement"]["judgements"] == 2 * chip["agreement"]["judgements"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "0123", "label": 1}, "no answer of this study has the id '0123'"),
        ({"item": "test/1", "arm": "dpo", "label": 1}, "there is no id, and no seed"),
        ({"item": "test/1", "arm": "dpo", "seed": 7, "label": 1}, "no trial 'dpo, seed 7'"),
        ({"item": "test/1", "arm": "dpo", "seed": 0, "label": 2}, "a number from 0 to 1"),
        ({"item": "test/1", "arm": "dpo", "seed": 0, "label": "yes"}, "a number from 0 to 1"),
        ({"item": "test/1", "arm": "dpo", "seed": 0, "label": ""}, "no row has a label yet"),
    ],
)
def test_what_is_no_label_is_refused(
    plan: Plan, judge: JudgeValues, tmp_path: Path, row: Any, said: str
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=said) as raised:
        read_labels([file], plan, judge)
    assert str(file) in str(raised.value)


def test_a_metric_without_outcomes_or_name_is_refused(
    plan: Plan, ledger: Ledger, workdir: Path
) -> None:
    for metric, said in (("hall", "no metric 'hall'.*hal"), (None, "chair_i has no item outcomes")):
        with pytest.raises(UserError, match=said):
            load_judge_values(plan, ledger, workdir, benchmark="shapes", metric=metric)


def test_the_commands_export_and_import_labels(
    study: Path,
    plan: Plan,
    ledger: Ledger,
    workdir: Path,
    tmp_path: Path,
    run_captured: Callable[..., tuple[int, str, str]],
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return run_captured(*arguments, "--workdir", workdir)

    of = ("--benchmark", "shapes", "--metric", "shapes/hal")
    out = tmp_path / "drawn.csv"
    code, printed, _ = run("judge-humans", "draw", study, *of, "--items", 9, "--out", out, "--json")
    assert code == 0 and json.loads(printed)["items"] == 9
    code, _, complaint = run("judge-humans", "draw", study, *of, "--out", out)
    assert code == 2 and "already exists" in complaint
    file = fill_labels(out.read_text(), lambda row: len(row["answer"]) % 2, tmp_path / "made.csv")
    code, printed, _ = run("judge-humans", "labels", study, file, *of, "--json")
    assert code == 0
    assert [arm["labelled"] for arm in json.loads(printed)["arms"]] == [9, 9]
    code, printed, _ = run("judge-humans", "labels", study, file, *of)
    assert code == 0 and "Human labels: shapes/hal" in printed and "less dpo" in printed

    sheets = tmp_path / "sheets"
    export = ("judge-humans", "export", study, "--arms", "dpo", "chip", "--benchmark", "shapes")
    assert run(*export, "--items", 12, "--out", sheets)[0] == 0
    key = json.loads((sheets / "key.json").read_text())
    reply = {"format": "chip-ablate human replies 1", "export": key["export"], "sheet": 1}
    choices = ["a", "b", "tie"] * 4
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps({**reply, "annotator": "x", "choices": choices}))
    code, printed, _ = run("judge-humans", "import", study, replies, "--metric", "hal")
    assert code == 0 and "By shapes/hal: people and the judge agree on" in printed
    code, printed, _ = run("judge-humans", "import", study, replies, "--json")
    assert json.loads(printed)["judge"] is None  # shapes' first metric has no outcomes here
    code, _, complaint = run("judge-humans", "import", study, replies, "--metric", "cover")
    assert code == 2 and "no item outcomes" in complaint
    assert run("judge-humans", "import", study, replies, "--metric", "hal")[0] == 0

    report = workdir / "studies" / "small" / "report"
    found = find_attachments(report, plan)
    assert "human/shapes/hal/chip vs dpo/corrected" in found.tables["humans.csv"]
    assert "of another version" not in str(found.sections)
    assert "human/shapes/chip vs dpo/judge/corrected" in found.tables["humans.csv"]
