"""MMMU: how choices and open answers are read, and the figures of subjects and domains."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.mmmu.parsing import (
    is_open_answer_right,
    parse_choice,
    parse_open,
)
from chip_core.evaluation.scorer import Answer, ProtocolName, Resources, ScoreResult
from chip_core.utils.errors import UserError

MMMU = BENCHMARKS["mmmu"]
TRUTHS = {
    "validation_Accounting_1": ("multiple-choice", "B"),
    "validation_Accounting_2": ("multiple-choice", "A"),
    "validation_Accounting_3": ("short-answer", "12.5"),
    "validation_Finance_1": ("multiple-choice", "C"),
    "validation_Art_Theory_1": ("short-answer", ["Tampa", "Florida"]),
}
OPTIONS = {"A": "a cat", "B": "a dog", "C": "two birds"}
LETTERS = ["A", "B", "C"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    truths = {
        item: {"question_type": kind, "ground_truth": truth}
        for item, (kind, truth) in TRUTHS.items()
    }
    (tmp_path / "answer_dict_val.json").write_text(json.dumps(truths))
    return tmp_path


def make_final_answers(said: dict[str, str]) -> list[Answer]:
    return [Answer(item=item, response=each, fields={"final": True}) for item, each in said.items()]


def make_raw_answer(item: str, response: str) -> Answer:
    fields = {"all_choices": LETTERS, "index2ans": OPTIONS}
    return Answer(item=item, response=response, fields=fields)


def score(
    given: Sequence[Answer],
    folder: Path,
    protocol: ProtocolName = "official",
    only: frozenset[str] | None = None,
) -> ScoreResult:
    return MMMU.score(given, data=folder, protocol=protocol, resources=Resources(only=only))


def test_equals_the_official_figures(oracles: Path) -> None:
    scored = score(
        MMMU.read_responses(oracles / "mmmu" / "responses.json"), oracles / "data" / "mmmu"
    )
    assert scored.values == json.loads((oracles / "mmmu" / "expected.json").read_text())
    assert (scored.n, scored.missing) == (900, 0)
    for metric in scored.metrics:
        rate = sum(i.numerator for i in metric.items) / sum(i.denominator for i in metric.items)
        assert metric.value == round(rate, 3)


def test_by_hand(data: Path) -> None:
    """Final letters count as they stand; 12.5 and 12.50 are one number; Florida is in it."""
    scored = score(
        make_final_answers(
            {
                "validation_Art_Theory_1": "I think it is Tampa, Florida",
                "validation_Accounting_1": "B",
                "validation_Accounting_2": "(A)",
                "validation_Accounting_3": "so x = 12.50",
                "validation_Finance_1": "C",
            }
        ),
        data,
    )
    values = scored.values
    assert values["accuracy"] == 0.8
    assert values["subject/Accounting"] == 0.667
    assert values["domain/Business"] == 0.75  # Accounting 2 of 3, Finance 1 of 1
    assert (values["subject/Art_Theory"], values["domain/Art and Design"]) == (1, 1)
    # A subject without answers is not printed, a domain without any is 0.
    assert "subject/Music" not in values
    assert values["domain/Science"] == 0
    assert (scored.n, scored.missing) == (5, 0)
    groups = [(i.item, i.numerator, i.group) for i in scored.metrics[0].items]
    assert groups[1] == ("validation_Accounting_2", 0, "Accounting")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        (",.B!?;:'", None),  # each mark is stripped once, and ' comes last
        ("B;:", None),
        ("B:;", "B"),
        ("(B)", "B"),
        ("(A) or rather (B)", "B"),  # the last one stands
        ("A or B", "B"),
        ("B, (A)", "A"),  # brackets go first
        ("B is right, not C", "C"),
        ("b", None),
        ("A.B", None),
        ("two birds", None),  # texts are looked for in more than five words
        ("It seems there are TWO BIRDS here", "C"),
        ("not a cat but rather a dog here", "B"),
        ("", None),
    ],
)
def test_reading_choices(answer: str, letter: str | None) -> None:
    assert parse_choice(answer, LETTERS, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "meanings"),
    [
        ("The answer is 60.", {60.0}),  # the shortest text after an indicator
        ("3.14159", {3.14}),
        ("x = 1,234.5", {1234.5, 1234.0, 234.5}),  # every form of number is looked for
        ("It is 2e3 kg", {"2e3 kg", 2000.0, 3.0}),
        ("first 5\nso it is 6", {6.0}),
        ("is this. So what", {"what"}),  # lower case comes first, so sentences are not split
        ("a", {" a", "a "}),
        ("", {""}),
        ("the result is ...", {"is"}),  # nothing after "is": the text after "result" is taken
        ("it is :", {"it is :"}),  # a mark is no answer
        ("-120", {-120.0}),
        ("1.5e3x", {"1.5e3x", 1500.0, 1.0}),
        ("12,34", {1234.0, 34.0}),
    ],
)
def test_reading_open_answers(answer: str, meanings: set[str | float]) -> None:
    assert parse_open(answer) == meanings


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("60", "The answer is 60.", True),
        ("60", "about sixty", False),
        ("60", "600", False),
        ("60", "60.004", True),  # two decimals
        ("60.01", "60", False),
        ("Tampa", "in tampa bay", True),
        ("C", "The answer is C.", True),
        ("C", "cat", False),  # a lone letter must end or begin a word
        ("C", "vitamin c tablets", True),
        ("1/64", "1/64", True),
        (["24/7", "3.429"], "3.43", True),
        (["24/7", "3.429"], "24 / 7", False),
        ("$MgS$", "MgS", False),
        ("5", "nan", False),
    ],
)
def test_open_answers(truth: str | list[str], answer: str, right: bool) -> None:
    assert is_open_answer_right(truth, parse_open(answer)) is right


def test_unreadable_choices_are_drawn_officially_in_the_order_of_subjects(data: Path) -> None:
    """Seed 42; Accounting comes before Finance wherever its answers stand in the file."""
    given_answers = [
        make_raw_answer("validation_Finance_1", "?"),
        make_raw_answer("validation_Accounting_1", "?"),
        make_raw_answer("validation_Accounting_2", "?"),
    ]
    draw = random.Random(42)
    letters = [draw.choice(LETTERS) for _ in range(3)]
    rights = [letters[0] == "B", letters[1] == "A", letters[2] == "C"]
    scored = score(given_answers, data)
    assert scored.values["accuracy"] == round(sum(rights) / 3, 3)
    items = scored.metrics[0].items
    assert [bool(item.numerator) for item in items] == rights
    assert [item.item[-12:] for item in items] == ["Accounting_1", "Accounting_2", "on_Finance_1"]
    # Corrected, nothing read is wrong: no luck in it.
    assert score(given_answers, data, "corrected").values["accuracy"] == 0


def test_options_come_from_the_row_or_from_the_benchmarks_files(data: Path) -> None:
    item = "validation_Accounting_1"
    long = "The picture shows a DOG on grass"
    listed = Answer(item=item, response=long, fields={"options": str(list(OPTIONS.values()))})
    assert score([listed], data).values["accuracy"] == 1
    bare = Answer(item=item, response=long)
    with pytest.raises(UserError, match="a response without its options"):
        score([bare], data)
    table = {"id": [item], "options": [str(list(OPTIONS.values()))], "answer": ["B"]}
    folder = data / "Accounting"
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "validation-00000-of-00001.parquet")
    assert score([bare], data).values["accuracy"] == 1
    broken = Answer(item=item, response=long, fields={"options": "[1, 2"})
    with pytest.raises(UserError, match="options must be a list of texts"):
        score([broken], data)


def test_degenerate_answers(data: Path) -> None:
    for protocol in ("official", "corrected"):
        with pytest.raises(UserError, match="no answers"):
            score([], data, protocol)
        empty = score(make_final_answers(dict.fromkeys(TRUTHS, "")), data, protocol)
        assert (empty.values["accuracy"], empty.n) == (0, 5)
        one = score(make_final_answers({"validation_Finance_1": "C"}), data, protocol)
        assert (one.values["accuracy"], one.n, one.missing) == (1, 1, 4)
    # Officially an id of another subject is passed over, one of a known subject stops the script.
    passed = score(
        make_final_answers({"validation_Finance_1": "C", "validation_Golf_1": "A", "x": "y"}), data
    )
    assert (passed.values["accuracy"], passed.n) == (1, 1)
    with pytest.raises(UserError, match="'validation_Finance_9' is not the id of a question"):
        score(make_final_answers({"validation_Finance_9": "C"}), data)
    with pytest.raises(UserError, match="'x' is not the id of a question"):
        score(make_final_answers({"x": "y"}), data, "corrected")
    twice = [
        *make_final_answers({"validation_Finance_1": "A"}),
        *make_final_answers({"validation_Finance_1": "C"}),
    ]
    assert score(twice, data).values["accuracy"] == 1  # the last counts
    with pytest.raises(UserError, match="2 times"):
        score(twice, data, "corrected")
    with pytest.raises(UserError, match="2 times"):
        score([make_raw_answer("validation_Finance_1", "C")] * 2, data)
    part = score(
        make_final_answers({"validation_Finance_1": "C"}),
        data,
        only=frozenset({"validation_Finance_1"}),
    )
    assert (part.n, part.missing) == (1, 0)


@pytest.mark.parametrize("piece", ["1", "1.", "a ", "is 5\n", "-", "1,000"])
def test_long_answers_cost_their_length(data: Path, piece: str) -> None:
    """A search that restarts within a run of digits would take hours on these."""
    long = piece * (500_000 // len(piece))
    said = make_final_answers({"validation_Accounting_3": long}) + [
        make_raw_answer("validation_Finance_1", long)
    ]
    assert score(said, data, "corrected").n == 2


def test_reading_files(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"a_B_1": "A", "a_B_2": "B", "a_B_1": "C"}')
    assert [(a.item, a.response, a.fields["final"]) for a in MMMU.read_responses(file)] == [
        ("a_B_1", "A", True),
        ("a_B_2", "B", True),
        ("a_B_1", "C", True),
    ]
    row: dict[str, Any] = {
        "id": "a_B_1",
        "response": "A",
        "all_choices": LETTERS,
        "index2ans": OPTIONS,
    }
    for text in (json.dumps(row), json.dumps([row])):
        file.write_text(text)
        (answer,) = MMMU.read_responses(file)
        assert (answer.item, answer.fields["index2ans"]) == ("a_B_1", OPTIONS)
    folder = tmp_path / "Art"
    folder.mkdir()
    (folder / "output.json").write_text(json.dumps([row]))
    assert [answer.item for answer in MMMU.read_responses(tmp_path)] == ["a_B_1"]
    for broken, said in (
        ('{"a_B_1": 5}', "'a_B_1': response must be text, got 5"),
        (json.dumps({**row, "index2ans": ["x"]}), "index2ans must give a text"),
        (json.dumps({**row, "all_choices": []}), "all_choices must be a list"),
        ("[", "not JSON"),
    ):
        file.write_text(broken)
        with pytest.raises(UserError, match=said):
            MMMU.read_responses(file)


SAID = st.sampled_from(["A", "B", "(C)", "?", "", "12.5", "so 12.50", "Tampa", "12", "in florida "])


@given(st.dictionaries(st.sampled_from(sorted(TRUTHS)), SAID, min_size=1))
def test_corrected_equals_a_plain_second_count(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("mmmu")
    truths = {i: {"question_type": k, "ground_truth": t} for i, (k, t) in TRUTHS.items()}
    (folder / "answer_dict_val.json").write_text(json.dumps(truths))
    values = score(
        [make_raw_answer(item, said) for item, said in drawn.items()], folder, "corrected"
    ).values
    good = {
        "validation_Accounting_1": {"B"},
        "validation_Accounting_2": {"A"},
        "validation_Accounting_3": {"12.5", "so 12.50"},
        "validation_Finance_1": {"(C)"},
        "validation_Art_Theory_1": {"Tampa", "in florida "},
    }
    right = {item: said in good[item] for item, said in drawn.items()}

    def share(*subjects: str) -> float | None:
        kept = [r for item, r in right.items() if any(f"_{s}_" in item for s in subjects)]
        return sum(kept) / len(kept) if kept else None

    assert values["accuracy"] == pytest.approx(sum(right.values()) / len(right))
    assert values["subject/Accounting"] == pytest.approx(share("Accounting"))
    assert values["domain/Business"] == pytest.approx(share("Accounting", "Finance"))
    assert values["domain/Art and Design"] == pytest.approx(share("Art_Theory"))
    assert values["domain/Science"] is None
