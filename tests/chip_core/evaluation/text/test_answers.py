"""Every answer of ../answers is read as it is meant, and what is not there is not read."""

from __future__ import annotations

import json
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.mmmu.parsing import is_open_answer_right, read_open
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.text.letters import read_letter
from chip_core.evaluation.text.verdicts import read_verdict

ANSWERS = Path(__file__).parent.parent / "answers"
LANGUAGES = {"en", "zh", "de", "fr", "es"}


def read_rows(benchmark: str) -> list[dict[str, Any]]:
    """Return answers with their right readings; made for this file, by hand."""
    lines = (ANSWERS / f"{benchmark}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def label_options(row: dict[str, Any]) -> dict[str, str]:
    return dict(zip(string.ascii_uppercase, row["options"], strict=False))


@pytest.mark.parametrize("benchmark", ["mmmu", "scienceqa"])
def test_letters_of_answers_are_read(benchmark: str) -> None:
    read = [(row, read_letter(row["answer"], label_options(row))) for row in read_rows(benchmark)]
    assert [(row["answer"], found) for row, found in read if found != row["reading"]] == []
    assert len(read) >= 200 and {row["language"] for row, _ in read} == LANGUAGES
    # Each kind of reading is there often enough to count.
    assert min(Counter(row["reading"] for row, _ in read)[letter] for letter in ("B", None)) >= 25


@pytest.mark.parametrize("benchmark", ["amber", "pope"])
def test_verdicts_of_answers_are_read(benchmark: str) -> None:
    read = [(row, read_verdict(row["answer"], row.get("thing"))) for row in read_rows(benchmark)]
    assert [(row["answer"], found) for row, found in read if found != row["reading"]] == []
    assert len(read) >= 200 and {row["language"] for row, _ in read} == LANGUAGES
    assert min(Counter(row["reading"] for row, _ in read).values()) >= 25


def test_a_mark_around_any_verdict_or_letter_changes_nothing() -> None:
    """What is looked through, around every plain form."""
    around = (
        "{}", "**{}**", "_{}_", "`{}`", "({})", "[{}]", '"{}"', "<answer>{}</answer>",
        "\\boxed{{{}}}", "$\\boxed{{\\text{{{}}}}}$", '{{"answer": "{}"}}', "Answer: {}",
        "**Answer:** {}", "The answer is {}.", "Final answer: {}", "### {}", "- {}", "{}\n", "{}.",
        "<think>Yes, A. No, C.</think>\n\n{}", "```json\n{{\"answer\": \"{}\"}}\n```",
        "<|begin_of_box|>{}<|end_of_box|>", "<b>{}</b>", "{}<|im_end|>", "答案：{}",
    )  # fmt: skip
    texts = dict.fromkeys("ABCD", "")
    for form in around:
        for verdict in ("yes", "no"):
            for said in (verdict, verdict.title(), verdict.upper()):
                assert read_verdict(form.format(said)) == verdict, form.format(said)
        for letter in "ABCD":
            assert read_letter(form.format(letter), texts) == letter, form.format(letter)


def test_only_letters_of_the_question_are_read() -> None:
    assert read_letter("E", {"A": "x", "B": "y"}) is None
    assert read_letter("The answer is E.", {"A": "x", "B": "y"}) is None
    assert read_letter("E", dict.fromkeys("ABCDE", "")) == "E"


@pytest.mark.parametrize(
    "part",
    ["A, ", "A or ", "Option A is ", "the answer is ", "most likely ", "not ", "is not ", "没有",
     '{"answer": ', "<answer>", "\\boxed{", "(", "A\n", "~~", "so ", "there is ", "well, "],
)  # fmt: skip
def test_long_answers_are_read_in_time(part: str) -> None:
    """40,000 characters of what patterns begin with; one that backtracks would not come back."""
    long = part * (40_000 // len(part))
    assert read_letter(f"{long}\nThe answer is B.", {"A": "x", "B": "y"}) in ("B", None)
    assert read_verdict(f"{long}\nFinal answer: no", "dog") in ("no", None)


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("5", "Answer: 5", True),
        ("5", "5cm", True),
        ("3.5", "It weighs 3.5kg.", True),
        ("-5", "−5", True),  # a minus sign
        ("5", "$\\boxed{5}$", True),
        ("5", '{"answer": 5}', True),
        ("60", "<think>It is 70.</think>It is 60 m/s.", True),
        ("70", "<think>It is 70.</think>It is 60 m/s.", False),
        ("Tampa", "The city is **Tampa**.", True),
        ("2", "2x", False),  # x is no unit
        ("5", "<think>5", False),
    ],
)
def test_open_answers(truth: str, answer: str, right: bool) -> None:
    assert is_open_answer_right(truth, read_open(answer)) is right


def test_mmmu_counts_and_shows_what_was_not_read(tmp_path: Path) -> None:
    """Three questions: one right, one that names two letters, one open answer of nothing."""
    truths = {
        f"validation_Art_{number}": {"question_type": kind, "ground_truth": truth}
        for number, kind, truth in (
            (1, "multiple-choice", "B"), (2, "multiple-choice", "A"), (3, "short-answer", "5"),
        )
    }  # fmt: skip
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(truths))
    said = ["A, C and D are wrong, so it is **B**.", "A or B", "<think>5"]
    given = [
        Answer(item=item, response=text, fields={"options": ["w", "x", "y", "z"]})
        for item, text in zip(truths, said, strict=True)
    ]

    def score(protocol: ProtocolName) -> ScoreResult:
        resources = Resources()
        return BENCHMARKS["mmmu"].score(
            given, data=tmp_path, protocol=protocol, resources=resources
        )

    scored = score("corrected")
    assert scored.values["accuracy"] == 1 / 3
    assert [(one.item, one.text) for one in scored.unreadable] == [
        ("validation_Art_2", "A or B"),
        ("validation_Art_3", "<think>5"),
    ]
    # There `B` before a space is taken, the last of several; nothing is left unread.
    assert score("official").unreadable == ()


def test_mmmu_officially_counts_where_a_letter_was_drawn(tmp_path: Path) -> None:
    truths = {"validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}}
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(truths))
    given = [Answer(item="validation_Art_1", response="**B**", fields={"options": ["x", "y"]})]
    for protocol, unread in (("official", ["**B**"]), ("corrected", [])):
        scored = BENCHMARKS["mmmu"].score(
            given, data=tmp_path, protocol=protocol, resources=Resources()
        )
        assert [one.text for one in scored.unreadable] == unread


def test_final_answers_of_mmmu_are_read_too(tmp_path: Path) -> None:
    truths = {"validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}}
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(truths))
    given = [Answer(item="validation_Art_1", response="(B)", fields={"final": True})]
    for protocol, accuracy in (("official", 0.0), ("corrected", 1.0)):
        scored = BENCHMARKS["mmmu"].score(
            given, data=tmp_path, protocol=protocol, resources=Resources()
        )
        assert scored.values["accuracy"] == accuracy
