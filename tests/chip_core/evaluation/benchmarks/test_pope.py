"""POPE: the official figures, their quirks, and the corrected ones against a plain second count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.pope.score import METRIC_NAMES, SPLITS, parse_as_script
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.text.verdicts import read_verdict
from chip_core.utils.errors import UserError

POPE = BENCHMARKS["pope"]
LABELS = ("yes", "no", "yes", "no")


def write_benchmark(folder: Path, labels: Sequence[str] = LABELS) -> Path:
    for split in SPLITS:
        rows = [
            {"question_id": number, "image": "a.jpg", "text": "?", "label": label}
            for number, label in enumerate(labels, start=1)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(text)
    return folder


def make_answers(*said: str, split: str = "random") -> list[Answer]:
    return [
        Answer(item=f"{split}/{number}", response=each) for number, each in enumerate(said, start=1)
    ]


def score(
    given: Sequence[Answer],
    folder: Path,
    protocol: ProtocolName = "official",
    only: frozenset[str] | None = None,
) -> ScoreResult:
    return POPE.score(given, data=folder, protocol=protocol, resources=Resources(only=only))


def test_equals_the_official_figures(oracles: Path) -> None:
    scored = score(POPE.read_responses(oracles / "pope"), oracles / "data" / "pope")
    assert scored.values == json.loads((oracles / "pope" / "expected.json").read_text())
    assert (scored.n, scored.missing) == (9000, 0)
    for metric in scored.metrics:
        rate = sum(i.numerator for i in metric.items) / sum(i.denominator for i in metric.items)
        assert metric.value == pytest.approx(rate, abs=1e-12)


def test_by_hand(tmp_path: Path) -> None:
    """Labels yes, no, yes, no; said yes, yes, no, no: TP, FP, FN, TN."""
    scored = score(
        make_answers("Yes", "yes it is", "No.", "There is not."), write_benchmark(tmp_path)
    )
    assert scored.values == {
        "random/accuracy": 2 / 4,
        "random/precision": 1 / 2,
        "random/recall": 1 / 2,
        "random/f1": 0.5,
        "random/yes_ratio": 2 / 4,
    }
    assert (scored.n, scored.missing) == (4, 3 * 4 - 4)
    f1 = {metric.name: metric.items for metric in scored.metrics}["random/f1"]
    assert [(i.item, i.numerator, i.denominator, i.group) for i in f1] == [
        ("random/1", 2, 2, "random"),
        ("random/2", 0, 1, "random"),
        ("random/3", 0, 1, "random"),
        ("random/4", 0, 0, "random"),
    ]


@pytest.mark.parametrize(
    ("answer", "official", "corrected"),
    [
        ("No", "no", "no"),
        ("no,", "no", "no"),  # commas are dropped
        ("no!", "yes", "no"),  # other marks are not
        ("NO", "yes", "no"),
        ("not sure", "no", None),
        ("Not sure", "yes", None),
        ("no\n", "yes", "no"),  # words are split at one space alone
        ("Yes. no", "yes", None),  # the first sentence counts there
        ("It does not appear. Yes", "no", "yes"),
        (".no", "yes", "no"),  # the first sentence is empty
        ("There isn't one", "yes", "no"),
        ("Nothing", "yes", "no"),
        ("", "yes", None),
        (" .. ", "yes", None),
    ],
)
def test_an_answer_is_read_by_the_script_and_by_our_reader(
    answer: str, official: str, corrected: str | None
) -> None:
    assert parse_as_script(answer) == official
    assert read_verdict(answer) == corrected


def test_official_pairs_by_position_and_corrected_by_id(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    right = make_answers("yes", "no", "yes", "no")
    moved = [right[1], right[0], right[2], right[3]]
    assert score(moved, tmp_path).values["random/accuracy"] == 2 / 4
    assert score(moved, tmp_path, "corrected").values["random/accuracy"] == 1
    unknown = [Answer(item=f"random/{n + 90}", response=a.response) for n, a in enumerate(right)]
    assert score(unknown, tmp_path).values["random/accuracy"] == 1
    with pytest.raises(UserError, match="'random/90' is not the id of a question"):
        score(unknown, tmp_path, "corrected")


def test_rows_too_many_and_too_few(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    many = score(make_answers("yes", "no", "yes", "no", "yes", "yes"), tmp_path)
    assert many.values["random/accuracy"] == 1
    assert many.values["random/yes_ratio"] == 4 / 6  # the official count goes over all answers
    assert many.n == 4
    few = score(make_answers("yes", "no"), tmp_path)
    assert (few.values["random/accuracy"], few.n, few.missing) == (1, 2, 10)


def test_of_a_part_the_labels_of_that_part_count(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    part = [Answer(item="random/3", response="yes"), Answer(item="random/4", response="no")]
    only = frozenset({"random/3", "random/4"})
    scored = score(part, tmp_path, only=only)
    assert (scored.values["random/accuracy"], scored.n, scored.missing) == (1, 2, 0)


def test_where_the_official_script_divides_by_zero(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    with pytest.raises(UserError, match="pope/random: no answer is read as yes"):
        score(make_answers("no", "no", "no", "no"), tmp_path)
    corrected = score(make_answers("no", "no", "no", "no"), tmp_path, "corrected").values
    assert corrected["random/precision"] is None
    # No label that is yes is found: 2·0 / (0 + 0 + 2).
    assert (corrected["random/recall"], corrected["random/f1"]) == (0, 0)
    assert corrected["random/accuracy"] == 2 / 4
    with pytest.raises(UserError, match="no answer is correctly yes"):
        score(make_answers("no", "yes", "no", "yes"), tmp_path)
    with pytest.raises(UserError, match="no label is yes"):
        score(make_answers("yes"), write_benchmark(tmp_path, ["no"]))


@pytest.mark.parametrize("protocol", ["official", "corrected"])
def test_degenerate_answers(tmp_path: Path, protocol: ProtocolName) -> None:
    write_benchmark(tmp_path)
    with pytest.raises(UserError, match="no answers"):
        score([], tmp_path, protocol)
    with pytest.raises(UserError, match="'7' is not the id of a question"):
        score([Answer(item="7", response="yes")], tmp_path, protocol)
    long = score(make_answers("yes " * 2_500_000), tmp_path, protocol)
    assert long.values["random/accuracy"] == 1
    empty = score(make_answers("", "", "", ""), tmp_path, protocol).values["random/accuracy"]
    assert empty == (0.5 if protocol == "official" else 0)


def test_what_has_no_verdict_is_wrong_counted_and_shown(tmp_path: Path) -> None:
    """Labels yes, no, yes, no; of four answers two say nothing: one of them would have been no."""
    scored = score(
        make_answers("Yes", "A kitchen.", "I cannot tell.\n", "no"),
        write_benchmark(tmp_path),
        "corrected",
    )
    assert scored.values["random/accuracy"] == 2 / 4
    assert scored.values["random/recall"] == 1 / 2  # the unread answer to a yes is no hit
    assert [(one.item, one.text, one.source) for one in scored.unreadable] == [
        ("random/2", "A kitchen.", "answer"),
        ("random/3", "I cannot tell.", "answer"),
    ]
    assert (scored.n, scored.missing) == (4, 3 * 4 - 4)  # answered, so not missing
    assert score(make_answers("Yes", "A kitchen."), tmp_path).unreadable == ()  # there it is a yes


def test_no_chip_and_no_repeats(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    with pytest.raises(UserError, match="pope: protocol chip"):
        score(make_answers("yes"), tmp_path, "chip")
    with pytest.raises(UserError, match="random/1 is answered 2 times"):
        score([*make_answers("yes"), *make_answers("yes")], tmp_path, "corrected")


def test_reading_files(tmp_path: Path) -> None:
    rows = [{"question": "?", "answer": "yes"}, {"question_id": 9, "answer": "no"}]
    (tmp_path / "answers_popular.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = POPE.read_responses(tmp_path)
    assert [answer.item for answer in found] == ["popular/row 1", "popular/9"]
    one = tmp_path / "all.jsonl"
    one.write_text(json.dumps({"item": "random/1", "response": "yes"}))
    assert POPE.read_responses(one) == [Answer(item="random/1", response="yes")]
    one.write_text(json.dumps({"item": "random/1", "response": None}))
    with pytest.raises(UserError, match=r"all.jsonl row 1: response must be text, got null"):
        POPE.read_responses(one)
    with pytest.raises(UserError, match="holds none of answers_random.jsonl"):
        POPE.read_responses(tmp_path / "..")


SAID = st.sampled_from(["yes", "No", "NO", "not", "isn't it", "", "?", "I think. no", "a no, b"])


@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.booleans(), SAID), min_size=1, max_size=30))
def test_corrected_equals_a_plain_second_count(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, bool, str]]
) -> None:
    folder = tmp_path_factory.mktemp("pope")
    write_benchmark(folder, [])
    given_answers = []
    for number, (split, truth, said) in enumerate(drawn):
        with (folder / f"coco_pope_{split}.json").open("a") as file:
            label = "yes" if truth else "no"
            file.write(json.dumps({"question_id": number, "label": label}) + "\n")
        given_answers.append(Answer(item=f"{split}/{number}", response=said))
    values = score(given_answers, folder, "corrected").values

    meaning = {
        "yes": "y", "No": "n", "NO": "n", "not": "n", "isn't it": "n", "": "", "?": "",
        "I think. no": "n", "a no, b": "n",
    }  # fmt: skip
    for split in SPLITS:
        kept = [(truth, meaning[said]) for each, truth, said in drawn if each == split]
        tp = kept.count((True, "y"))
        fp = kept.count((False, "y"))
        tn = kept.count((False, "n"))
        positives = sum(truth for truth, _ in kept)

        def over(part: int, whole: int) -> float | None:
            return part / whole if whole else None

        plain = {
            "accuracy": over(tp + tn, len(kept)),
            "precision": over(tp, tp + fp),
            "recall": over(tp, positives),
            "f1": over(2 * tp, tp + fp + positives),
            "yes_ratio": over(tp + fp, len(kept)),
        }
        assert {f: values.get(f"{split}/{f}") for f in METRIC_NAMES} == pytest.approx(plain)
