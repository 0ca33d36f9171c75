"""LLaVA-Bench in the Wild: two ratings an answer, and their ratio by category."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chip_core.evaluation import BENCHMARKS
from chip_core.evaluation.benchmarks.llava_bench.score import CATEGORIES, parse_as_script
from chip_core.evaluation.scorer import (
    Answer,
    ProtocolName,
    Resources,
    ScoreResult,
)
from chip_core.evaluation.text.reply_ratings import read_pair
from chip_core.utils.errors import UserError

from .fake_judge import FakeJudge

BENCH = BENCHMARKS["llava_bench"]


def write_lines(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_benchmark(folder: Path) -> Path:
    asked = [
        {
            "question_id": n,
            "image": f"00{n % 2}.jpg",
            "text": f"Q{n}?",
            "category": CATEGORIES[n % 3],
        }
        for n in range(6)
    ]
    write_lines(folder / "questions.jsonl", asked)
    write_lines(
        folder / "answers_gpt4.jsonl", [{"question_id": n, "text": f"R{n}"} for n in range(6)]
    )
    write_lines(
        folder / "context.jsonl",
        [{"image": "000.jpg", "caption": ["C", "D"]}, {"image": "001.jpg", "caption": "E"}],
    )
    rules = {
        f"llava_bench_{name}": {"role": "Helper", "prompt": f"Rule {name}."} for name in CATEGORIES
    }
    (folder / "rule.json").write_text(json.dumps(rules))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path)


def make_answers(size: int = 6) -> list[Answer]:
    return [Answer(item=str(number), response=f"A{number}") for number in range(size)]


def score(
    given: Sequence[Answer],
    folder: Path,
    replies: Mapping[str, str | None] | FakeJudge,
    protocol: ProtocolName = "official",
    only: frozenset[str] | None = None,
) -> ScoreResult:
    judge = replies if isinstance(replies, FakeJudge) else FakeJudge(replies)
    resources = Resources(judge=judge, only=only)
    return BENCH.score(given, data=folder, protocol=protocol, resources=resources)


def test_by_hand(data: Path) -> None:
    """conv (0, 3): 8 8 and 10 5; detail (1, 4): 9 3 and none; complex (2, 5): 7 7 and a failure."""
    replies = {
        "0": "8 8\nFine",
        "1": "9,3",
        "2": "7 7",
        "3": "10 5",
        "4": "Assistant 1: 8",
        "5": None,
    }
    official = score(make_answers(), data, replies)
    # Unread is −1 and −1: means (8+9+7+10−1−1)/6 = 5.333 and (8+3+7+5−1−1)/6 = 3.5.
    assert official.values["relative_score"] == 65.6  # 3.5 / 5.333
    assert official.values["reference_score"] == 53.3
    assert official.values["answer_score"] == 35.0
    assert official.values["relative_score/conv"] == 72.2  # 6.5 / 9
    assert official.values["relative_score/detail"] == 25.0  # (3−1)/(9−1)
    assert (official.n, official.missing) == (6, 1)
    corrected = score(make_answers(), data, replies, "corrected")
    assert corrected.values["relative_score"] == pytest.approx(100 * 23 / 34)
    assert corrected.values["reference_score"] == pytest.approx(10 * 34 / 4)
    assert corrected.values["answer_score/complex"] == pytest.approx(70)
    assert (corrected.n, corrected.missing) == (4, 2)
    items = {metric.name: metric.items for metric in corrected.metrics}["relative_score/conv"]
    assert [(i.item, i.numerator, i.denominator, i.group) for i in items] == [
        ("0", 8, 8, "conv"),
        ("3", 5, 10, "conv"),
    ]


def test_what_the_judge_is_asked(data: Path) -> None:
    judge = FakeJudge({"0": "8 8"})
    score(make_answers(1), data, judge)
    (request,) = judge.requests
    assert (request.item, request.temperature, request.max_tokens) == ("0", 0.2, 1024)
    system, user = request.messages
    assert system["role"] == "system"
    assert user["content"] == (
        "[Context]\nC\nD\n\n[Question]\nQ0?\n\n[Helper 1]\nR0\n\n[End of Helper 1]\n\n"
        "[Helper 2]\nA0\n\n[End of Helper 2]\n\n[System]\nRule conv.\n\n"
    )


@pytest.mark.parametrize(
    ("reply", "official", "corrected"),
    [
        ("8 9", (8, 9), (8, 9)),
        ("8.5 9\nbecause", (8.5, 9), (8.5, 9)),
        ("8,9", (8, 9), (8, 9)),
        ("8, 9", (-1, -1), (8, 9)),  # two spaces
        ("\n8 9", (-1, -1), (8, 9)),
        ("8 9 10", (-1, -1), None),
        ("8 / 9", (-1, -1), (8, 9)),
        ("80 90", (80, 90), None),
        ("0 5", (0, 5), None),
        ("Assistant 1: 8", (-1, -1), None),
        ("", (-1, -1), None),
    ],
)
def test_reading_ratings(
    reply: str, official: tuple[float, float], corrected: tuple[float, float] | None
) -> None:
    assert parse_as_script(reply) == official
    assert read_pair(reply) == corrected


def test_official_pairs_by_position_and_corrected_by_id(data: Path) -> None:
    judge = FakeJudge({})
    score(make_answers()[::-1], data, judge)
    assert "Q0?" in judge.requests[0].messages[1]["content"]
    assert "A5" in judge.requests[0].messages[1]["content"]
    judge = FakeJudge(dict.fromkeys("012345", "8 8"))
    score(make_answers()[::-1], data, judge, "corrected")
    assert [request.item for request in judge.requests] == list("012345")
    assert "A0" in judge.requests[0].messages[1]["content"]
    part = score(make_answers()[2:3], data, {"2": "8 4"}, only=frozenset({"2"}))
    assert (part.values["relative_score"], part.n, part.missing) == (50, 1, 0)


def test_degenerate_answers(data: Path) -> None:
    for protocol in ("official", "corrected"):
        with pytest.raises(UserError, match="no answers"):
            score([], data, {}, protocol)
        one = score(make_answers(1), data, {"0": "8 4"}, protocol)
        assert (one.values["relative_score"], one.n, one.missing) == (50, 1, 5)
        assert one.values["relative_score/detail"] is None
    many = [*make_answers(), Answer(item="x", response="")]
    assert score(many, data, dict.fromkeys("012345", "8 4")).n == 6
    with pytest.raises(UserError, match="'x' is not the id of a question"):
        score(many, data, {}, "corrected")
    with pytest.raises(UserError, match="0 is answered 2 times"):
        score(make_answers(1) * 2, data, {}, "corrected")
    for reply in ("0 5", "nan 5", "5 inf"):
        with pytest.raises(UserError, match="the official script has no figure"):
            score(make_answers(1), data, {"0": reply})
    assert score(make_answers(), data, {}, "corrected").values["relative_score"] is None
    assert score(make_answers(1), data, {"0": "8" * 10_000_000}, "corrected").n == 0


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("questions.jsonl", "", "0 questions.jsonl rows and 6"),
        ("rule.json", "{}", "has no rule in"),
        (
            "rule.json",
            '{"llava_bench_conv": {"role": "x"}}',
            "llava_bench_conv: there is no prompt",
        ),
        ("context.jsonl", "", "says nothing about image 000.jpg"),
    ],
)
def test_broken_benchmark_files(data: Path, file: str, text: str, said: str) -> None:
    (data / file).write_text(text)
    with pytest.raises(UserError, match=said):
        score(make_answers(), data, {})
    (data / file).unlink()
    with pytest.raises(UserError, match=f"holds no {file}"):
        score(make_answers(), data, {})


def test_reading_files(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question_id": 3, "text": "a", "answer_id": "z"}')
    assert BENCH.read_responses(file) == [Answer(item="3", response="a")]


DRAWN = st.dictionaries(
    st.sampled_from("012345"),
    st.one_of(st.tuples(st.integers(1, 10), st.integers(1, 10)), st.none()),
    min_size=1,
)


@given(DRAWN)
def test_corrected_equals_a_plain_second_count(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[int, int] | None]
) -> None:
    folder = write_benchmark(tmp_path_factory.mktemp("bench"))
    replies = {item: f"{pair[0]} {pair[1]}" if pair else "?" for item, pair in drawn.items()}
    given_answers = [make_answers()[int(item)] for item in drawn]
    values = score(given_answers, folder, replies, "corrected").values
    for end, numbers in {"": "012345", "/conv": "03", "/detail": "14", "/complex": "25"}.items():
        kept = [pair for item, pair in drawn.items() if pair and item in numbers]
        ours, theirs = sum(pair[1] for pair in kept), sum(pair[0] for pair in kept)
        assert values[f"relative_score{end}"] == pytest.approx(
            100 * ours / theirs if kept else None
        )
        mean = 10 * ours / len(kept) if kept else None
        assert values[f"answer_score{end}"] == pytest.approx(mean)
