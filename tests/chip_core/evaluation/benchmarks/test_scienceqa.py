"""ScienceQA: letters as LLaVA's script reads them, and the parts of the benchmark's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.scienceqa.score import parse_as_script
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.evaluation.text.letters import read_letter
from chip_core.utils.errors import UserError

QA = BENCHMARKS["scienceqa"]


def make_problem(answer: int, image: bool, subject: str, hint: str, grade: int) -> dict[str, Any]:
    return {
        "choices": ["x", "y", "z"],
        "answer": answer,
        "image": "image.png" if image else None,
        "subject": f"{subject} science",
        "hint": hint,
        "grade": f"grade{grade}",
    }


PROBLEMS = {
    "4": make_problem(0, True, "natural", "a hint", 2),
    "5": make_problem(1, False, "natural", "", 8),
    "11": make_problem(2, True, "social", "", 12),
    "12": make_problem(0, False, "language", "a hint", 6),
    "13": make_problem(1, False, "language", "", 3),  # of another split
}
TEST = ["4", "5", "11", "12"]


def write_benchmark(folder: Path, problems: Mapping[str, Any], test: Sequence[str]) -> Path:
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": test, "train": ["13"]}))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path, PROBLEMS, TEST)


def make_answers(**said: str) -> list[Answer]:
    return [Answer(item=item[1:], response=each) for item, each in said.items()]


def score(
    given: Sequence[Answer], folder: Path, protocol: ProtocolName = "official"
) -> ScoreResult:
    return QA.score(given, data=folder, protocol=protocol, resources=Resources())


def test_by_hand(data: Path) -> None:
    """4 right, 5 wrong, 11 right, 12 not answered: wrong officially, left out under corrected."""
    given_answers = make_answers(_4="A", _5="A. x", _11="I say. The answer is C.")
    official = score(given_answers, data)
    assert official.values == {
        "accuracy": 50.0,
        "image_accuracy": 100.0,
        "subject/natural": 50.0,
        "subject/social": 100.0,
        "subject/language": 0.0,
        "context/text": 50.0,
        "context/image": 100.0,
        "context/none": 0.0,
        "grade/1-6": 50.0,
        "grade/7-12": 50.0,
    }
    assert (official.n, official.missing) == (4, 1)
    corrected = score(given_answers, data, "corrected")
    assert corrected.values["accuracy"] == pytest.approx(200 / 3)
    assert corrected.values["subject/language"] is None
    assert (corrected.n, corrected.missing) == (3, 1)


def test_two_decimals_officially(data: Path) -> None:
    write_benchmark(data, PROBLEMS, ["4", "5", "11"])
    values = score(make_answers(_4="A", _5="C", _11="A"), data).values
    assert values["accuracy"] == 33.33


def test_the_prompt_says_which_questions_have_an_image(data: Path) -> None:
    with_prompt = [
        Answer(item="4", response="A", fields={"prompt": "no picture"}),
        Answer(item="5", response="C", fields={"prompt": "<image>\nWhich?"}),
        Answer(item="12", response="B"),
    ]
    assert score(with_prompt, data).values["image_accuracy"] == 0.0
    # Whether the benchmark has an image for it; 11 has no answer.
    assert score(with_prompt, data, "corrected").values["image_accuracy"] == 100
    with pytest.raises(UserError, match="no answered question has an image"):
        score(with_prompt[2:], data)


@pytest.mark.parametrize(
    ("answer", "official", "corrected"),
    [
        ("B", "B", "B"),
        ("B. y", "B", "B"),
        ("B.", None, "B"),
        ("(B)", None, "B"),
        ("b) y", None, "B"),
        (" B\n", None, "B"),
        ("F", None, None),
        ("A cat", None, None),
        ("The answer is B.", "B", "B"),
        ("The answer is B", None, "B"),  # officially something must stand behind it
        ("The answer is Because", "B", None),
        ("The answer is A. The answer is B.", None, None),
        ("the answer is (B)", None, "B"),
        ("", None, None),
    ],
)
def test_reading_letters(answer: str, official: str | None, corrected: str | None) -> None:
    assert parse_as_script(answer) == official
    assert read_letter(answer, dict.fromkeys("ABCDE", "")) == corrected


def test_a_letter_past_the_choices_is_wrong(data: Path) -> None:
    assert score(make_answers(_4="E", _5="B", _11="C", _12="A"), data).values["accuracy"] == 75


def test_degenerate_answers(data: Path) -> None:
    for protocol in ("official", "corrected"):
        with pytest.raises(UserError, match="no answers"):
            score([], data, protocol)
        long = score(make_answers(_4="A" * 10_000_000), data, protocol)
        assert long.values["accuracy"] == 0
    twice = [*make_answers(_4="B", _99="A"), *make_answers(_4="A")]
    assert score(twice, data).values["accuracy"] == 25  # the last counts, 99 is passed over
    with pytest.raises(UserError, match="'99' is not the id of a question"):
        score(twice, data, "corrected")
    with pytest.raises(UserError, match="4 is answered 2 times"):
        score(make_answers(_4="A") * 2, data, "corrected")
    empty = score(make_answers(_4="", _5="", _11="", _12=""), data, "corrected")
    assert (empty.values["accuracy"], empty.n) == (0, 4)


def test_reading_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"question_id": "4", "text": "A", "prompt": "p"}\n{"question_id": 5, "text": ""}'
    )
    one, two = QA.read_responses(file)
    assert (one.item, one.response, dict(one.fields)) == ("4", "A", {"prompt": "p"})
    assert (two.item, dict(two.fields)) == ("5", {})


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("pid_splits.json", "{}", "has no list 'test'"),
        ("pid_splits.json", '{"test": ["77"]}', "problem '77' must be there"),
        ("problems.json", "[]", "must be a JSON object"),
    ],
)
def test_broken_benchmark_files(data: Path, file: str, text: str, said: str) -> None:
    (data / file).write_text(text)
    with pytest.raises(UserError, match=said):
        score(make_answers(_4="A"), data)
    (data / file).unlink()
    with pytest.raises(UserError, match=f"holds no {file}"):
        score(make_answers(_4="A"), data)


DRAWN = st.dictionaries(st.sampled_from(TEST), st.sampled_from("ABCDE?"), min_size=1)


@given(DRAWN)
def test_corrected_equals_a_plain_second_count(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, str]
) -> None:
    folder = write_benchmark(tmp_path_factory.mktemp("qa"), PROBLEMS, TEST)
    given_answers = [Answer(item=item, response=said) for item, said in drawn.items()]
    values = score(given_answers, folder, "corrected").values
    truth = {"4": "A", "5": "B", "11": "C", "12": "A"}

    def share(*items: str) -> float | None:
        kept = [drawn[item] == truth[item] for item in items if item in drawn]
        return 100 * sum(kept) / len(kept) if kept else None

    assert values == pytest.approx(
        {
            "accuracy": share(*TEST),
            "image_accuracy": share("4", "11"),
            "subject/natural": share("4", "5"),
            "subject/social": share("11"),
            "subject/language": share("12"),
            "context/text": share("4", "12"),
            "context/image": share("4", "11"),
            "context/none": share("5"),
            "grade/1-6": share("4", "12"),
            "grade/7-12": share("5", "11"),
        }
    )
